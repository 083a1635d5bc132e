"""What a run of several stages or data sets would see: each data set, and what each stage makes of each."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.caption_draw import check_names
from data_pipeline.doctor import Digests, captions_of, data_of, flat, judge_data, judge_run, records_of, rows_of
from data_pipeline.errors import UserError
from data_pipeline.page import Section, Table
from data_pipeline.row_schedule import RowSchedule
from data_pipeline.shards import ShardReader
from data_pipeline.stages import Stage, check_features, check_stages, of_share

SHOWN = ("share", "steps", "rows", "epochs", "clips", "padding", "tokens_per_step", "segments_per_row", "binding")
SUMMED = ("tokens_per_step", "samples_per_step", "seconds_of_video_per_step")


def examine_stages(
    stages: Sequence[Stage],
    num_steps: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """`problems` and `warnings` as `examine_data` has them; `data_sets` by path; `stages` in turn, with what a step
    holds in all and of each data set.

    Raises `UserError` where there is no data set, and for data sets that no run can mix.
    """
    readers = {path: ShardReader(path, "latent") for path in check_stages(stages)}
    report: dict[str, Any] = {"problems": [], "warnings": [], "data_sets": {}, "stages": []}
    digests: dict[str, Digests] = {}
    for path, reader in readers.items():
        records, digests[path] = records_of(reader, on_progress)
        found = {"data": data_of(reader), "records": records}
        report["data_sets"][path] = found
        _add(report, path, judge_data(found | {"captions": captions_of(reader, stages[0].stream)}))
    report["problems"] += leaks_between(digests)
    try:
        check_features(stages)
    except UserError as error:
        report["problems"].append(str(error))
    ends = [*(stage.start for stage in stages[1:]), num_steps]
    for number, (stage, end) in enumerate(zip(stages, ends, strict=True)):
        report["stages"].append(_examine(report, readers, stage, number, max(0, min(end, num_steps) - stage.start)))
    return report


def leaks_between(digests: Mapping[str, Digests]) -> list[str]:
    """What one data set of the run trains on, and another holds out."""
    problems = []
    for (one, trained), (other, heldout) in itertools.permutations(digests.items(), 2):
        clips, groups = (trained[name]["train"] & heldout[name]["heldout"] for name in ("content", "group"))
        if clips:
            problems.append(f"{len(clips)} clips of the train split of {one} are held out in {other}")
        if groups:
            problems.append(f"groups of the train split of {one} are held out in {other}, such as {min(groups)}")
    return problems


def _examine(
    report: dict[str, Any], readers: dict[str, ShardReader], stage: Stage, number: int, steps: int
) -> dict[str, Any]:
    """One stage; what is wrong with it is added to the report."""
    name = f"stage {number} (from step {stage.start})"
    if not steps:
        report["problems"].append(f"{name} would train on nothing: the run ends before it, or the next stage begins")
    schedule, seen = RowSchedule([member.weight for member in stage.members]), {}
    rows = schedule.rows_before(steps * stage.stream.batch_rows)
    for member, share, count in zip(stage.members, schedule.shares, rows, strict=True):
        reader, cfg = readers[member.path], of_share(stage.stream, share)
        one: dict[str, Any] = {"data": report["data_sets"][member.path]["data"], "captions": captions_of(reader, cfg)}
        try:
            run, untrained = rows_of(reader, cfg, number)
            epochs = count / max(run["steps_per_epoch"] * cfg.batch_rows, 1e-9)
            run |= {"share": float(share), "rows": count, "num_steps": steps, "epochs": epochs}
            per_step = float(share) * stage.stream.batch_rows / cfg.batch_rows
            run |= {what: run[what] * per_step for what in SUMMED}
        except UserError as error:
            run, untrained = {"share": float(share), "nothing": str(error)}, []
        if steps and not count:
            run["nothing"] = f"none of its {steps * stage.stream.batch_rows} rows is from this data set"
        one |= {"run": run, "untrained": untrained}
        _add(report, f"{name}, {member.path}", judge_run(one))
        seen[member.path] = {**run, "captions": one["captions"], "untrained": untrained}
    try:
        check_names(stage.stream.caption_weights, [readers[member.path].index for member in stage.members])
    except UserError as error:
        report["problems"].append(f"{name}: {error}")
    packing = stage.stream.packing
    return {
        "start": stage.start,
        "steps": steps,
        "rows_per_step": packing.batch_rows,
        "row_tokens": packing.row_tokens,
        "row_text": packing.row_text,
        "row_segments": packing.row_segments,
        "reference_tokens": stage.reference_tokens,
        "padding": sum(run["share"] * run.get("padding", 1.0) for run in seen.values()),
        **{what: sum(run.get(what, 0) for run in seen.values()) for what in SUMMED},
        "data_sets": seen,
    }


def _add(report: dict[str, Any], where: str, found: tuple[list[str], list[str]]) -> None:
    for kind, texts in zip(("problems", "warnings"), found, strict=True):
        report[kind] += [f"{where}: {text}" for text in texts]


def stages_sections(report: dict[str, Any]) -> list[Section]:
    """The report as tables."""
    sections = [
        Section("Problems", table=Table(["what"], [[text] for text in report["problems"]]), bad=True),
        Section("Warnings", table=Table(["what"], [[text] for text in report["warnings"]])),
    ]
    for number, stage in enumerate(report["stages"]):
        facts = flat((name, value) for name, value in stage.items() if name != "data_sets")
        sections.append(Section(f"Stage {number}: a step", table=Table(["", ""], facts)))
        rows = [[Path(path).name, *_facts(run)] for path, run in stage["data_sets"].items()]
        head = ["data set", *(name.replace("_", " ") for name in SHOWN), "captions drawn by source"]
        sections.append(Section(f"Stage {number}: its data sets", table=Table(head, rows)))
    for path, found in report["data_sets"].items():
        data = flat((name, value) for name, value in found["data"].items() if name != "shapes")
        records = flat((name, value) for name, value in found["records"].items() if name != "unreadable")
        sections.append(Section(path, table=Table(["", ""], data + records)))
    return [section for section in sections if section.table and section.table.rows]


def _facts(run: dict[str, Any]) -> list[Any]:
    if "nothing" in run:
        return [f"{run['share']:.4g}", run["nothing"], *[""] * (len(SHOWN) - 1)]
    values = [run.get(name, run.get(f"num_{name}", "")) for name in SHOWN]
    drawn = ", ".join(f"{source} {share:.1%}" for source, share in run["captions_drawn_by_source"].items())
    return [*(f"{value:.4g}" if isinstance(value, float) else value for value in values), drawn]
