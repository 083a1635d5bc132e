"""The funnel: what came in, what each stage dropped and why, what came out; as JSON and as a page with pictures."""

import base64
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.curation.candidate import Candidate, Examined
from data_pipeline.page import Picture, Section, Table

STAGES = ("filters", "models", "duplicates", "captions", "balance", "captioner", "render")
MAX_EXAMPLES = 6


def funnel(sources: Sequence[Examined], clips: Sequence[Candidate]) -> dict[str, Any]:
    """Counts by stage: `in` and `out` in clips and hours, `dropped` by reason. The first stage counts sources."""
    bad = defaultdict(int)
    for source in sources:
        if source.rejected:
            bad[str(source.rejected.reason)] += 1
    cropped = sum(clip.crop != (0, 0, clip.height, clip.width) for clip in clips)
    shots = {"cuts": sum(source.num_cuts for source in sources), "cropped": cropped, "out": _amount(clips)}
    report: dict[str, Any] = {"probe": {"in": len(sources), "dropped": dict(sorted(bad.items()))}, "shots": shots}
    left = list(clips)
    for stage in STAGES:
        dropped: dict[str, list[Candidate]] = defaultdict(list)
        for clip in left:
            if clip.rejected and clip.rejected.stage == stage:
                dropped[str(clip.rejected.reason)].append(clip)
        before = _amount(left)
        left = [clip for clip in left if not (clip.rejected and clip.rejected.stage == stage)]
        reasons = {reason: _amount(gone) for reason, gone in sorted(dropped.items())}
        report[stage] = {"in": before, "dropped": reasons, "out": _amount(left)}
    return report


def _amount(clips: Sequence[Candidate]) -> dict[str, float]:
    return {"clips": len(clips), "hours": round(sum(clip.duration_s for clip in clips) / 3600, 4)}


def sections(
    report: dict[str, Any],
    sources: Sequence[Examined],
    clips: Sequence[Candidate],
    picture: Callable[[Candidate], bytes],
) -> list[Section]:
    """The page: the table of stages, unreadable sources, and pictures of what was dropped and what was kept."""
    rows = [
        ["probe", report["probe"]["in"], "", reason, count, ""] for reason, count in report["probe"]["dropped"].items()
    ]
    found = report["shots"]["out"]
    rows.append(
        [
            "shots",
            found["clips"],
            found["hours"],
            f"{report['shots']['cuts']} cuts, {report['shots']['cropped']} cropped",
            "",
            "",
        ]
    )
    for stage in STAGES:
        entry = report[stage]
        for reason, gone in entry["dropped"].items():
            rows.append([stage, entry["in"]["clips"], entry["in"]["hours"], reason, gone["clips"], gone["hours"]])
    kept = report[STAGES[-1]]["out"]
    rows.append(["kept", kept["clips"], kept["hours"], "", "", ""])
    page = [
        Section("Stages", table=Table(["stage", "clips in", "hours in", "why", "clips dropped", "hours dropped"], rows))
    ]
    unreadable = [[source.source_id, source.rejected.detail] for source in sources if source.rejected]
    if unreadable:
        page.append(Section("Sources that could not be used", table=Table(["source", "why"], unreadable)))
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for clip in clips:
        groups[f"Dropped: {clip.rejected.reason}" if clip.rejected else "Kept"].append(clip)
    for name, members in sorted(groups.items()):
        step = max(1, len(members) // MAX_EXAMPLES)
        shown = members[::step][:MAX_EXAMPLES]
        page.append(Section(f"{name} ({len(members)})", pictures=[_picture(clip, picture(clip)) for clip in shown]))
    return page


def _picture(clip: Candidate, jpeg: bytes) -> Picture:
    why = clip.rejected.detail if clip.rejected else f"{clip.crop[3]}x{clip.crop[2]}, {clip.duration_s:.1f} s"
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", clip.clip_id, why)
