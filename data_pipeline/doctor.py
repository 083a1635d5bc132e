"""What a run would see of a data set, before any model is built: `sora-jax data doctor`.

Nothing is guessed: rows come from the training plan itself, crops from the training stream, and every record is read.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.caption_draw import check_names, count_sources, shares_by_source
from data_pipeline.caption_features import CaptionFeatures
from data_pipeline.caption_pairs import PairConfig
from data_pipeline.caption_stream import CaptionStreamConfig
from data_pipeline.clip_stream import ClipSource, ClipStreamConfig
from data_pipeline.errors import UserError
from data_pipeline.page import Section, Table
from data_pipeline.plan import Plan
from data_pipeline.records import SPLITS, ClipRecord, LatentRecord
from data_pipeline.shards import ShardReader
from data_pipeline.stream import StreamConfig, plan_fingerprint

MAX_LISTED = 50
SCANNED_WINDOWS = 2
Digests = dict[str, dict[str, set[str]]]
"""By "content" and "group", by split: which there are."""
Looked = tuple[dict[str, Any], list[dict[str, Any]]]
"""What a run sees, and the records that it never visits: number and why."""
PERCENTILES = (0, 10, 50, 90, 99, 100)


def examine_data(
    directory: Path,
    cfg: StreamConfig | ClipStreamConfig,
    num_steps: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The report. `problems` are what would stop or spoil the run, `warnings` what may; `untrained` lists clips of the
    train split that no step visits: record number and why.

    Raises `UserError` only where there is no data set of the kind that `cfg` is for.
    """
    reader = ShardReader(directory, "latent" if isinstance(cfg, StreamConfig) else "clip")

    def look() -> Looked:
        if isinstance(cfg, StreamConfig):
            check_names(cfg.caption_weights, [reader.index])
        seen, untrained = rows_of(reader, cfg) if isinstance(cfg, StreamConfig) else _crops(reader, cfg)
        epochs = num_steps / max(seen["steps_per_epoch"], 1e-9)
        return {**seen, "epochs": epochs, "num_steps": num_steps}, untrained

    return examine(reader, cfg, look, on_progress)


def examine(
    reader: ShardReader,
    cfg: StreamConfig | ClipStreamConfig | CaptionStreamConfig | PairConfig,
    look: Callable[[], Looked],
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """The report of a run of any kind. `look` says what the run sees; its UserError is why the run sees nothing."""
    report: dict[str, Any] = {"data": data_of(reader), "captions": captions_of(reader, cfg)}
    report["records"], _ = records_of(reader, on_progress)
    try:
        run, untrained = look()
    except UserError as error:
        run, untrained = {"nothing": str(error)}, []
    report |= {"run": run, "untrained": untrained}
    problems, warnings = judge(report)
    return {"problems": problems, "warnings": warnings, **report}


def data_of(reader: ShardReader) -> dict[str, Any]:
    manifest = reader.manifest
    sizes = {split: sum(s.size_bytes for s in manifest.shards if s.split == split) for split in SPLITS}
    return {
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "clips": manifest.counts,
        "hours": round(manifest.durations_s["total"] / 3600, 4),
        "longest_s": manifest.durations_s["max"],
        "bytes": sizes,
        "shards": len(manifest.shards),
        "shapes": manifest.shapes,
    }


def captions_of(
    reader: ShardReader, cfg: StreamConfig | ClipStreamConfig | CaptionStreamConfig | PairConfig
) -> dict[str, Any]:
    index = reader.index
    tokens, counts = index.caption_tokens, np.diff(index.caption_offsets)
    limit = cfg.packing.caption_limit if isinstance(cfg, StreamConfig) else getattr(cfg, "max_tokens", 0)
    lengths = np.percentile(tokens, PERCENTILES).tolist() if len(tokens) else []
    return {
        "captions": len(tokens),
        "clips_without": int((counts == 0).sum()),
        "tokens_by_percentile": dict(zip(map(str, PERCENTILES), lengths, strict=False)),
        "by_source": count_sources(index),
        "limit_tokens": limit,
        "truncated": int((tokens > limit).sum()) if limit else 0,
    }


def records_of(reader: ShardReader, on_progress: Callable[[int, int], None]) -> tuple[dict[str, Any], Digests]:
    """Every record read once: (which cannot be, and what is in both splits; the contents and groups of each split)."""
    unreadable: list[dict[str, Any]] = []
    found: Digests = {name: {split: set() for split in SPLITS} for name in ("content", "group")}
    repeated = 0
    for number in range(len(reader.index)):
        try:
            record = reader.read(number)
        except UserError as error:
            unreadable.append({"record": number, "why": str(error)})
            continue
        finally:
            on_progress(number + 1, len(reader.index))
        content, contents = _content(record), found["content"][record.split]
        repeated += content in contents
        contents.add(content)
        found["group"][record.split].add(record.group_id)
    leaks = {name: sorted(seen["train"] & seen["heldout"]) for name, seen in found.items()}
    report = {
        "read": len(reader.index) - len(unreadable),
        "unreadable": unreadable,
        "same_content_within_a_split": repeated,
        "same_content_in_train_and_heldout": len(leaks["content"]),
        "groups_in_train_and_heldout": leaks["group"][:MAX_LISTED],
    }
    return report, found


def _content(record: ClipRecord | LatentRecord) -> str:
    if isinstance(record, ClipRecord):
        return f"{record.checksum} {record.start_s} {record.end_s}"
    return hashlib.sha256(record.latents).hexdigest()


def rows_of(reader: ShardReader, cfg: StreamConfig, stage: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the packing plan of a stage makes of the train split, and the clips that it leaves out."""
    index, packing = reader.index, cfg.packing
    if cfg.text_features:
        CaptionFeatures(reader.directory, reader.manifest, index, packing.caption_limit)
    plan = Plan(index, packing, cfg.seed, plan_fingerprint(reader.manifest, stage))
    report = plan.report(SCANNED_WINDOWS, cfg.batch_rows)
    windows = [plan.window(number) for number in range(SCANNED_WINDOWS)]
    steps = SCANNED_WINDOWS * plan.window_steps
    first = next((record for number in range(len(index)) if (record := _try_read(reader, number))), None)
    per_latent = first.temporal_compression if isinstance(first, LatentRecord) else 1
    seconds = sum(((1 + per_latent * (w.frames - 1)) / index.fps[w.record]).sum() for w in windows)
    samples, tokens = sum(len(w.record) for w in windows), np.concatenate([w.tokens for w in windows])
    names = ("clips", "padding", "text_padding", "binding", "segments_per_row", "left_out", "cut_to_fit", "cut_to_row")
    seen = {
        **{name: report[name] for name in names},
        "steps_per_epoch": report["steps_per_epoch"],
        "samples_per_step": samples / steps,
        "tokens_per_step": int(tokens.sum() / steps),
        "seconds_of_video_per_step": float(seconds / steps),
        "tokens_per_clip": dict(zip(map(str, PERCENTILES), np.percentile(tokens, PERCENTILES).tolist(), strict=True)),
        "captions_drawn_by_source": shares_by_source(
            index, np.concatenate([w.record for w in windows]), np.concatenate([w.caption for w in windows])
        ),
        "without_weighted_caption": report["without_weighted_caption"],
    }
    rows, columns = packing.patch_size[1:]
    records = index.select("train")
    frame_tokens = (index.height[records] // rows) * (index.width[records] // columns)
    untrained = [
        {"record": int(record), "why": f"a latent frame is {tokens} tokens, a row holds 1 to {packing.row_tokens}"}
        for record, tokens in zip(records, frame_tokens, strict=True)
        if not 1 <= tokens <= packing.row_tokens
    ]
    return seen, untrained


def _try_read(reader: ShardReader, number: int) -> ClipRecord | LatentRecord | None:
    try:
        return reader.read(number)
    except UserError:
        return None


def _crops(reader: ShardReader, cfg: ClipStreamConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Which clips hold which crop, as the stream itself finds."""
    source = ClipSource(reader.directory, cfg)
    eligible = source.eligible
    records = reader.index.select("train")
    used = np.unique(np.concatenate(list(eligible.values())))
    clips = {f"{t}x{y}x{x}": len(found) for (t, y, x), found in eligible.items()}
    frames = [crop[0] for crop in cfg.crops]
    rate = cfg.fps or float(np.median(reader.index.fps[records]))
    seen = {
        "clips": len(records),
        "clips_by_crop": clips,
        "steps_per_epoch": len(used) / cfg.batch_size,
        "samples_per_step": cfg.batch_size,
        "pixels_per_step": int(cfg.batch_size * np.mean([t * y * x for t, y, x in cfg.crops])),
        "seconds_of_video_per_step": cfg.batch_size * float(np.mean(frames)) / rate,
    }
    index = reader.index
    untrained = [
        {"record": int(n), "why": f"{index.frames[n]} frames of {index.width[n]}x{index.height[n]} hold no crop"}
        for n in np.setdiff1d(records, used)
    ]
    return seen, untrained


def judge(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(what stops or spoils the run, what may)."""
    of_data, of_run = judge_data(report), judge_run(report)
    return of_run[0] + of_data[0], of_data[1] + of_run[1]


def judge_data(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Of a data set, whatever run reads it."""
    records, data, captions = report["records"], report["data"], report["captions"]
    problems, warnings = [], []
    total = sum(data["clips"].values())
    if records["unreadable"]:
        text = f"{len(records['unreadable'])} of {total} records are unreadable"
        (problems if len(records["unreadable"]) > total / 4 else warnings).append(text)
    if records["same_content_in_train_and_heldout"]:
        problems.append(f"{records['same_content_in_train_and_heldout']} clips are in train and in heldout")
    if records["groups_in_train_and_heldout"]:
        problems.append(f"groups are in train and in heldout, such as {records['groups_in_train_and_heldout'][0]}")
    if not data["clips"]["heldout"]:
        warnings.append("there are no held-out clips: nothing can be evaluated")
    if data["kind"] == "latent" and captions["clips_without"]:
        warnings.append(f"{captions['clips_without']} of {total} clips have no caption")
    return problems, warnings


def judge_run(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Of what a run makes of a data set."""
    run, data, captions = report["run"], report["data"], report["captions"]
    problems, warnings = [], []
    if "nothing" in run:
        problems.append(f"the run would train on nothing: {run['nothing']}")
    if report["untrained"]:
        warnings.append(f"{len(report['untrained'])} of {data['clips']['train']} train clips are never visited")
    if captions["truncated"]:
        limit = captions["limit_tokens"]
        warnings.append(f"{captions['truncated']} of {captions['captions']} captions are cut to {limit} tokens")
    if run.get("without_weighted_caption"):
        count = run["without_weighted_caption"]
        warnings.append(f"{count} clips have only captions that caption_weights do not name: these are used")
    if run.get("padding", 0) > 0.1:
        warnings.append(f"{100 * run['padding']:.0f}% of the rows is padding; {run['binding']} fills first")
    if 0 < run.get("epochs", 1) < 1:
        warnings.append(f"{run['num_steps']} steps are {run['epochs']:.2f} epochs: some clips are never seen")
    return problems, warnings


def report_sections(report: dict[str, Any]) -> list[Section]:
    """The report as tables."""
    sections = [
        Section("Problems", table=Table(["what"], [[text] for text in report["problems"]]), bad=True),
        Section("Warnings", table=Table(["what"], [[text] for text in report["warnings"]])),
        Section("What the run sees", table=Table(["", ""], flat(report["run"].items()))),
        Section(
            "The data set", table=Table(["", ""], flat((k, v) for k, v in report["data"].items() if k != "shapes"))
        ),
        Section("Shapes", table=Table(["frames x height x width", "clips"], _top(report["data"]["shapes"]))),
        Section("Captions", table=Table(["", ""], flat(report["captions"].items()))),
        Section(
            "Records", table=Table(["", ""], flat((k, v) for k, v in report["records"].items() if k != "unreadable"))
        ),
    ]
    for name, listed in (("Unreadable", report["records"]["unreadable"]), ("Never visited", report["untrained"])):
        rows = [[line["record"], line["why"]] for line in listed[:MAX_LISTED]]
        sections.append(Section(f"{name} ({len(listed)})", table=Table(["record", "why"], rows)))
    return [section for section in sections if section.table and section.table.rows]


def flat(items: Iterable[tuple[str, Any]], prefix: str = "") -> list[list[Any]]:
    rows = []
    for name, value in items:
        if isinstance(value, dict):
            rows += flat(value.items(), f"{prefix}{name} ")
        else:
            rows.append([f"{prefix}{name}".replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value])
    return rows


def _top(shapes: dict[str, int]) -> list[list[Any]]:
    items = list(shapes.items())
    rest = sum(count for _, count in items[MAX_LISTED:])
    return [[name, count] for name, count in items[:MAX_LISTED]] + ([["others", rest]] if rest else [])
