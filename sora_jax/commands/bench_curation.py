"""`sora-jax bench curation`: precision and recall of cuts, borders, limits and duplicates on variants of real clips.

Base clips are cut from files that hold one shot each (`--videos`, less `--exclude`); what is made of them, and what is
true of it, says `data_pipeline/curation/variants.py`. Files of `--beside` go through the same curation and its funnel;
nothing is known of them, except that the beginning of the file that a base clip was cut from is its copy. The funnel
stays in `--out`.
"""

import argparse
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_pipeline.curation.config import CurationConfig
from data_pipeline.curation.curate import curate
from data_pipeline.curation.funnel import STAGES
from data_pipeline.curation.variants import FPS, Truth, make_variants
from data_pipeline.engines import LocalEngine
from data_pipeline.video_frames import probe
from data_pipeline.walk import find_inputs
from sora_jax.commands.shared import add_workers, progress
from sora_jax.commands.train import load_config
from sora_jax.config import build_config

CUT_TOLERANCE = 2  # frames
BORDER_TOLERANCE = 4  # pixels on each edge, twice the inset that is meant
BESIDE = "beside"
REACHED_DUPLICATES = ("kept", *STAGES[STAGES.index("duplicates") :])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench curation`."""
    parser.add_argument("--videos", type=Path, required=True, help="folder of clips that hold one shot each")
    parser.add_argument("--exclude", default="", help="names of files that hold several, with commas")
    parser.add_argument("--clips", type=int, default=45, help="base clips, in turn from each folder")
    parser.add_argument("--beside", type=Path, nargs="+", default=(), metavar="DIR", help="folders curated with them")
    parser.add_argument("--config", default="configs/curation_shared.py", metavar="FILE.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the variants and the curation")
    add_workers(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Precision and recall by what was looked for, and what was wrong, by name."""
    excluded = set(filter(None, args.exclude.split(",")))
    names = [name for name in find_inputs(args.videos, args.out) if Path(name).name not in excluded]
    picked = pick(names, args.clips)
    truths = make_variants([args.videos / name for name in picked], args.out / "videos")
    for folder in args.beside:
        shutil.copytree(folder, args.out / "videos" / BESIDE / folder.name)
    config = build_config(CurationConfig, load_config(args.config, args.overrides, {}).to_dict(), "config")
    start = time.monotonic()
    with progress("curating") as report:
        engine = LocalEngine(args.workers)
        found = curate(
            str(args.out / "videos"), str(args.out / "curated"), config, engine,
            on_progress=lambda _, done, total: report(done, total),
        )  # fmt: skip
    seconds = time.monotonic() - start
    clips = [json.loads(line) for line in (args.out / "curated" / "clips.jsonl").read_text().splitlines()]
    by_source = defaultdict(list)
    for clip in clips:
        by_source[clip["source"]].append(clip)
    segments = {truth.name: truth.segments for truth in truths}
    for folder in (folder for folder in args.beside if folder.samefile(args.videos)):
        for name in picked:  # written at another rate: what took so many frames there takes as many seconds here
            base, frames = Path(name).stem, segments[f"base_{Path(name).stem}.mp4"][0][2]
            end = round(frames * FPS / probe(folder / name).fps)
            segments[f"{BESIDE}/{folder.name}/{name}"] = ((base, 0, end),)
    rejected = [json.loads(line) for line in (args.out / "curated" / "rejected.jsonl").read_text().splitlines()]
    return {
        "files": len(truths),
        "seconds": seconds,
        "cuts": score_cuts(truths, by_source),
        "borders": score_borders(truths, by_source),
        "limits": score_limits(truths, by_source),
        "duplicates": score_duplicates({truth.name: truth.kind for truth in truths}, segments, clips, rejected),
        "funnel": found["funnel"],
    }


def pick(names: Sequence[str], count: int) -> list[str]:
    """`count` names, in turn from each folder."""
    place: Counter[str] = Counter()
    turns = []
    for name in names:
        folder = str(Path(name).parent)
        turns.append((place[folder], name))
        place[folder] += 1
    return sorted(name for _, name in sorted(turns)[:count])


def score_cuts(truths: Sequence[Truth], clips: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By kind of transition. A boundary between two clips found within `CUT_TOLERANCE` of a transition is right."""
    found, wrong, total = Counter(), Counter(), Counter()
    names = []
    for truth in truths:
        edges = _boundaries(clips[truth.name])
        total[truth.kind] += len(truth.cuts)
        left = list(truth.cuts)
        for first, last in edges:
            hit = next(
                (cut for cut in left if first <= cut[1] + CUT_TOLERANCE and last >= cut[0] - CUT_TOLERANCE), None
            )
            if hit is None:
                wrong[truth.kind] += 1
                names.append(f"{truth.name} at {first}")
            else:
                left.remove(hit)
                found[truth.kind] += 1
        names += [f"{truth.name} misses {cut}" for cut in left]
    by_kind = {kind: f"{found[kind]} of {total[kind]}, {wrong[kind]} wrong" for kind in sorted(total)}
    return {
        **_rates(sum(found.values()), sum(wrong.values()), sum(total.values())),
        "by_kind": by_kind,
        "errors": names,
    }


def _boundaries(clips: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """[end, start) between neighbouring clips of a source, in frames."""
    return [(a[1], b[0]) for a, b in pairwise(sorted(map(_frames, clips)))]


def _frames(clip: dict[str, Any]) -> tuple[int, int]:
    """[start, end) of a clip in its source."""
    return round(clip["start_s"] * FPS), round(clip["end_s"] * FPS)


def score_borders(truths: Sequence[Truth], clips: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Clips with bars, of which the found picture lies inside the true one and close to it; others must stay whole."""
    found = wrong = total = 0
    names = []
    for truth in truths:
        barred = truth.kind in ("letterbox", "pillarbox")
        total += barred
        for clip in clips[truth.name]:
            top, left, height, width = clip["crop"]
            edges = (top, left, top + height, left + width)
            is_whole = top == left == 0 and (height, width) == tuple(truth.crop[2:])
            true = (truth.crop[0], truth.crop[1], truth.crop[0] + truth.crop[2], truth.crop[1] + truth.crop[3])
            close = all(abs(a - b) <= BORDER_TOLERANCE for a, b in zip(edges, true, strict=True))
            found += barred and close
            is_right = close if barred else is_whole
            wrong += not is_right and not is_whole
            names += [] if is_right else [f"{truth.name}: {clip['crop']}, true {truth.crop}"]
    return {**_rates(found, wrong, total), "errors": names}


def score_limits(truths: Sequence[Truth], clips: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Of clips that were spoiled, how many broke the limit meant, or another; and how many base clips were dropped."""
    outcomes: dict[str, Counter] = defaultdict(Counter)
    for truth in truths:
        if truth.spoiled or truth.kind == "base":
            for clip in clips[truth.name]:
                stage, _, reason = clip["outcome"].partition(": ")
                outcomes[truth.spoiled or "base"][reason if stage == "filters" else "passed"] += 1
    return {kind: ", ".join(f"{n} {reason}" for reason, n in found.most_common()) for kind, found in outcomes.items()}


Segments = Sequence[tuple[str, int, int]]


def score_duplicates(
    kinds: dict[str, str],
    segments: dict[str, Segments],
    clips: Sequence[dict[str, Any]],
    rejected: Iterable[dict[str, Any]],
) -> dict[str, Any]:
    """Of the clips that passed the limits: those dropped as a copy of a clip of the same base are right.

    `kinds` and `segments` are by source. A pair of which one clip has a base and the other none is wrong, one of which
    neither has is `unjudged`.
    """
    of = {line["path"]: line["detail"].removeprefix("of ") for line in rejected if line["stage"] == "duplicates"}
    base = {clip["clip_id"]: _base(clip, segments.get(clip["source"], ())) for clip in clips}
    unjudged = sorted(f"{clip} of {other}" for clip, other in of.items() if not base[clip] and not base[other])
    judged = {clip: other for clip, other in of.items() if base[clip] or base[other]}
    reached = [clip for clip in clips if base[clip["clip_id"]] and clip["outcome"].split(":")[0] in REACHED_DUPLICATES]
    total = len(reached) - len({base[clip["clip_id"]] for clip in reached})
    right = sum(base[clip] == base[other] for clip, other in judged.items())
    errors = [f"{clip} is no copy of {other}" for clip, other in judged.items() if base[clip] != base[other]]
    kept = Counter(base[clip["clip_id"]] for clip in reached if clip["outcome"] == "kept")
    errors += [f"{name} is kept {count} times" for name, count in kept.items() if count > 1]
    outcomes: dict[str, Counter] = defaultdict(Counter)
    for clip in reached:
        kind = kinds.get(clip["source"], "original")
        outcomes[kind]["kept" if clip["outcome"] == "kept" else "dropped"] += 1
    by_kind = {kind: dict(counts) for kind, counts in sorted(outcomes.items())}
    rates = _rates(right, len(judged) - right, total)
    return {**rates, "by_kind": by_kind, "errors": errors, "unjudged": unjudged}


def _base(clip: dict[str, Any], segments: Segments) -> str:
    """The base clip that shares most frames with this one; "" where none is known to."""
    start, end = _frames(clip)
    shared = {name: min(end, last) - max(start, first) for name, first, last in segments}
    return max((name for name in shared if shared[name] > 0), key=shared.__getitem__, default="")


def _rates(right: int, wrong: int, total: int) -> dict[str, Any]:
    return {
        "precision": right / max(right + wrong, 1),
        "recall": right / max(total, 1),
        "right": right,
        "wrong": wrong,
        "true": total,
    }
