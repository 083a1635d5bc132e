"""The data's funnel for a report's page: what was found, what each stage left out and why, what the run learned from.

Read from what the verbs left: `funnel.json` of `data curate`, `inputs.jsonl` and `rejected.jsonl` of `data build`, the
manifest and `rejected.jsonl` of `encode`.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.curation.curate import REPORT
from data_pipeline.errors import UserError
from data_pipeline.shards import Manifest

INPUTS, REJECTED, MANIFEST = "inputs.jsonl", "rejected.jsonl", "manifest.json"
MOST_REASONS = 6
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Stage:
    """`found` things came in, `kept` went on; `reasons` are those for which the others did not, and how many each."""

    name: str
    unit: str
    found: int
    kept: int
    reasons: tuple[tuple[str, int], ...] = ()
    note: str = ""

    @property
    def percent(self) -> float:
        return round(100 * self.kept / self.found, 2) if self.found else 0.0


def read_funnel(folders: Sequence[Path]) -> list[Stage]:
    """The stages of several folders of data, from the sources to the latents. Raises UserError for what is no data."""
    stages: list[tuple[int, list[Stage]]] = []
    manifests = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        if (folder / MANIFEST).is_file():
            manifests[folder] = Manifest.load(folder)
        elif not (folder / REPORT).is_file():
            raise UserError(f"{folder} holds no data: it has neither {MANIFEST} nor {REPORT}; name what a verb wrote")
    curated = {
        path for folder in map(Path.resolve, folders) for path in (folder, folder.parent) if (path / REPORT).is_file()
    }
    for folder in sorted(curated):
        stages.append((0, _curation(json.loads((folder / REPORT).read_text())["funnel"])))
    clips = {manifest.fingerprint: manifest for manifest in manifests.values() if manifest.kind == "clip"}
    for folder, manifest in manifests.items():
        if manifest.kind == "clip":
            stages.append((1, [_build(folder, manifest)]))
        else:
            stages.append((2, [_latents(folder, manifest, clips.get(manifest.metadata.get("data_fingerprint", "")))]))
    return [stage for _, found in sorted(stages, key=lambda pair: pair[0]) for stage in found]


def _curation(counts: Mapping[str, Any]) -> list[Stage]:
    """The stages of a curation: sources, then clips and hours; of those that drop clips, the ones that did."""
    probe, shots = counts["probe"], counts["shots"]
    kept = probe["in"] - sum(probe["dropped"].values())
    stages = [Stage("readable sources", "sources", probe["in"], kept, _largest(probe["dropped"]))]
    number = shots["out"]["clips"]
    stages.append(Stage("shots", "clips", number, number, (), f"{shots['cuts']:,} cuts, {_hours(shots['out'])}"))
    for name, entry in counts.items():
        if name not in ("probe", "shots") and entry["dropped"]:
            dropped = {reason: amount["clips"] for reason, amount in entry["dropped"].items()}
            before, after = entry["in"]["clips"], entry["out"]["clips"]
            stages.append(Stage(name, "clips", before, after, _largest(dropped), _hours(entry["out"])))
    return stages


def _build(folder: Path, manifest: Manifest) -> Stage:
    """Inputs to clip shards; a curated data set has no list of inputs, and is all kept."""
    clips, note = _num(manifest), _splits(manifest)
    if not (folder / INPUTS).is_file():
        return Stage("clip shards", "clips", clips, clips, (), note)
    lines = [json.loads(line) for line in (folder / INPUTS).read_text().splitlines()]
    outcomes = Counter(line["outcome"] for line in lines)
    kept = len(lines) - outcomes["rejected"]
    again = f", {outcomes['encoded again']:,} encoded again" if outcomes["encoded again"] else ""
    reasons = Counter(_alike(line["why"]) for line in lines if line["outcome"] == "rejected")
    return Stage("clip shards", "inputs", len(lines), kept, _largest(reasons), f"{clips:,} clips: {note}{again}")


def _latents(folder: Path, manifest: Manifest, clips: Manifest | None) -> Stage:
    """Clips to windows of latents; how many clips there were is known where their shards were named too."""
    path = folder / REJECTED
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    reasons, windows = Counter(_alike(line["reason"]) for line in lines), _num(manifest)
    found = max(_num(clips), len(lines)) if clips else windows + len(lines)
    cut = manifest.metadata.get("frames_cut", 0)
    note = f"{windows:,} windows: {_splits(manifest)}" + (f", {cut:,} frames cut off" if cut else "")
    return Stage("latent shards", "clips", found, found - len(lines), _largest(reasons), note)


def _num(manifest: Manifest) -> int:
    return sum(manifest.counts.values())


def _splits(manifest: Manifest) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in sorted(manifest.counts.items(), reverse=True))


def _hours(amount: Mapping[str, float]) -> str:
    return f"{amount['hours']:.3g} h"


def _alike(reason: str) -> str:
    """Reasons that differ in their numbers alone count as one."""
    return _NUMBER.sub("N", reason)[:120]


def _largest(reasons: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The most frequent reasons, and what is left as one."""
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in ordered[MOST_REASONS:])
    return (*ordered[:MOST_REASONS], *([("other reasons", rest)] if rest else []))
