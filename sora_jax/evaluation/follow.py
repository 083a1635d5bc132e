"""Following a run from beside it: its new checkpoints as they come, and a row of scores for each.

The follower only reads the run's checkpoints and appends to its `metrics.jsonl`, a line in one write: it neither stops
nor waits for training, and training does not know of it. What it has scored is in its own folder, a file a step: a
follower that is started again goes on, and rows that a resumed run cut off are written again.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error
from sora_jax.training.checkpoint import CHECKPOINTS, committed_steps
from sora_jax.training.metrics import METRICS, read_metrics
from sora_jax.training.run_directory import CONFIG

SCORE = "score"
"""The kind of the rows in `metrics.jsonl`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """`every_s`: between two looks for a new checkpoint; `patience_s`: without one, the follower ends."""

    every_s: float = 10.0
    patience_s: float = 3600.0


def last_step(run: Path) -> int:
    """The step at which the run's config ends. Raises UserError for what is no run."""
    try:
        return int(json.loads((run / CONFIG).read_text())["train"]["num_steps"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run} is no run that can be followed: {CONFIG} cannot be read ({error})") from error


def scored_steps(folder: Path) -> list[int]:
    """The steps whose results are in a follower's folder."""
    return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())


def new_checkpoints(run: Path, is_done: Callable[[int], bool], pace: Pace, end: int) -> Iterator[int]:
    """Each committed step that is not done, the oldest first, as they come; ends after step `end` or patience."""
    looked = time.monotonic()
    while True:
        left = [step for step in committed_steps(run / CHECKPOINTS) if not is_done(step)]
        if left:
            yield left[0]
            looked = time.monotonic()
        elif is_done(end):
            return
        elif time.monotonic() - looked > pace.patience_s:
            logger.warning("no new checkpoint of %s for %g s: no longer followed", run, pace.patience_s)
            return
        else:
            time.sleep(pace.every_s)


def score_if_there(run: Path, step: int, score: Callable[[int], dict[str, Any]]) -> dict[str, Any] | None:
    """What `score` gives, or None where retention deleted the checkpoint while it was read."""
    try:
        return score(step)
    except Exception as error:  # files that go away under a reader make errors of many types
        if step in committed_steps(run / CHECKPOINTS):
            raise
        logger.warning("checkpoint %d was deleted while it was read, left out: %s", step, error)
        return None


def write_result(folder: Path, step: int, result: Mapping[str, Any]) -> None:
    """`STEP.json`, whole or not at all. Raises UserError where it cannot be written."""
    path = folder / f"{step}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".part").replace(path)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error


def add_rows(run: Path, folder: Path) -> int:
    """Appends the rows of scored steps that `metrics.jsonl` lacks; how many."""
    rows = read_metrics(run)
    there = {row["step"] for row in rows if row["kind"] == SCORE}
    missing = [step for step in scored_steps(folder) if step not in there]
    for step in missing:
        found = numbers(json.loads((folder / f"{step}.json").read_text()))
        line = (json.dumps({"step": step, "kind": SCORE, **found}) + "\n").encode()
        try:
            file = os.open(run / METRICS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line)  # one write: rows of the run and of a follower do not mix
            finally:
                os.close(file)
        except OSError as error:
            raise from_os_error(error, f"writing {run / METRICS}") from error
    return len(missing)


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a result as flat names: distances, shares of what is generated, means."""
    return {name: value for name, (value, *_) in with_intervals(result).items()}


def with_intervals(result: Mapping[str, Any]) -> dict[str, tuple[float, float | None, float | None]]:
    """The scores of a result by flat names, each with its 95% interval (None: the metric has none)."""
    each = {name: result[name] for name in result["metric"].split(",") if isinstance(result.get(name), dict)}
    found: dict[str, tuple[Any, Any, Any]] = {}
    for metric, one in (each or {result["metric"]: result}).items():
        if isinstance(one.get(metric), int | float):
            spread = one.get("interval") or {}
            found[metric] = one[metric], spread.get("low"), spread.get("high")
        for name, score in one.get("scores", {}).get("generated", {}).items():
            found[f"{metric}/{name}"] = score.get("mean", score.get("rate")), score.get("low"), score.get("high")
        for name, groups in one.get("scores", {}).items():
            if name != "generated" and isinstance(groups.get("generated"), dict):
                score = groups["generated"]
                found[f"{metric}/{name}"] = score.get("rate"), score.get("low"), score.get("high")
            for group in ("mean", "best"):  # of predictions
                if isinstance(score := groups.get(group), dict):
                    found[f"{metric}/{name}/{group}"] = score["mean"], score["low"], score["high"]
    return {name: value for name, value in found.items() if value[0] is not None and math.isfinite(value[0])}
