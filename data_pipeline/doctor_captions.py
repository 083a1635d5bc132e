"""What a captioner's run would see of a data set of clips: which of them it reads, and whose captions, stage by stage.

Nothing is guessed: clips come from the training stream itself, captions are drawn as it draws them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.caption_draw import CaptionDraw, shares_by_source
from data_pipeline.caption_stream import CaptionSource, CaptionStreamConfig, Weights
from data_pipeline.doctor import examine
from data_pipeline.permutation import key_from
from data_pipeline.shards import ShardReader

DRAWS = 8
"""How often a caption of each clip is drawn."""


def examine_captions(
    directory: Path,
    cfg: CaptionStreamConfig,
    num_steps: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The report, as `examine_data` has it; `run` says of each stage the captions that are drawn in it.

    Raises `UserError` only where there is no data set of clips.
    """
    reader = ShardReader(directory, "clip")
    report = examine(reader, cfg, lambda: (_run(reader, cfg, num_steps), _untrained(reader)), on_progress)
    empty = [name for name, stage in report["run"].get("stages", {}).items() if not stage["steps"]]
    report["problems"] += [f"{name} would train on nothing: the run ends before it" for name in empty]
    return report


def _run(reader: ShardReader, cfg: CaptionStreamConfig, num_steps: int) -> dict[str, Any]:
    """Raises UserError for what the run's own streams refuse."""
    source = CaptionSource(reader.directory, cfg)
    if reader.manifest.counts["heldout"]:
        CaptionSource(reader.directory, cfg.of_last_stage(), "heldout")
    records = source.eligible[cfg.canvas]
    starts = [stage.start for stage in cfg.stages] or [0]
    stages = {}
    for number, (start, weights) in enumerate(zip(starts, cfg.weights_of_stages(), strict=True)):
        end = min([*starts[number + 1 : number + 2], num_steps])
        stages[f"stage {number} (from step {start})"] = {
            "steps": max(0, end - start),
            **_drawn(reader, cfg, weights, records),
        }
    return {
        "clips": len(records),
        "steps_per_epoch": len(records) / cfg.batch_size,
        "num_steps": num_steps,
        "epochs": num_steps * cfg.batch_size / len(records),
        "samples_per_step": cfg.batch_size,
        "without_weighted_caption": max(stage["without_weighted_caption"] for stage in stages.values()),
        "stages": stages,
    }


def _drawn(reader: ShardReader, cfg: CaptionStreamConfig, weights: Weights, records: np.ndarray) -> dict[str, Any]:
    """What is drawn for these clips with the weights of a stage."""
    draw = CaptionDraw(reader.index, weights, key_from("doctor", reader.manifest.fingerprint, cfg.seed))
    clips = np.tile(records.astype(np.int64), DRAWS)
    caption, tokens = draw.draw(np.repeat(np.arange(DRAWS), len(records)), clips)
    return {
        "captions_drawn_by_source": shares_by_source(reader.index, clips, caption),
        "truncated": float((tokens > cfg.max_tokens).mean()),
        "without_weighted_caption": int(draw.lacks_names(records.astype(np.int64)).sum()),
    }


def _untrained(reader: ShardReader) -> list[dict[str, Any]]:
    records, counts = reader.index.select("train"), np.diff(reader.index.caption_offsets)
    return [{"record": int(number), "why": "it has no caption"} for number in records[counts[records] == 0]]
