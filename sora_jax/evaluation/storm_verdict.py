"""What a storm has shown: the final state beside the undisturbed run's, committed steps lost, a table of the kinds."""

import collections
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from sora_jax.evaluation.storm import KINDS, STORM, UNDISTURBED, Storm
from sora_jax.training.checkpoint import find_verified, load_parts, saved_shapes
from sora_jax.training.ledger import add_up, read_ledger
from sora_jax.training.metrics import read_metrics

PARTS = ("params", "ema", "state")
CLOCKS = ("_seconds", "per_second", "data_wait", "mfu", "_gib", "slowest_process", "padding")
"""Endings of the metrics that are about time and memory, and differ between any two runs; and padding, which the host
counts while its clock runs and the device otherwise: the last digit differs"""
COLUMNS = (
    "kind", "kills", "exit codes", "in a save", "steps lost", "steps repeated", "kill to all exited, s",
    "start to first step, s",
)  # fmt: skip


def judge(storm: Storm, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The storm's outcome, as one JSON object; `exit_code` is 1 unless nothing was lost and the runs are the same."""
    runs = [storm.folder / name for name in (UNDISTURBED, STORM)]
    lost, differing = sum(row["lost"] for row in rows), differing_arrays(*runs)
    losses = count_same_losses(*runs)
    starts = [row["first_step_s"] for row in rows if row["first_step_s"] is not None]
    outcome = {
        "kills": sum(row["struck"] for row in rows),
        "starts": len(rows),
        "kinds": dict(collections.Counter(row["kind"] for row in rows if row["struck"])),
        "steps": storm.num_steps,
        "committed_steps_lost": lost,
        "steps_repeated": sum(row["repeated"] for row in rows),
        "final_state_is_bitwise_equal": not differing,
        "differing_arrays": differing[:5],
        "steps_with_equal_metrics": losses,
        "start_to_first_step_s": _round(statistics.median(starts)) if starts else None,
        "seconds": _round(rows[-1]["ended"] - rows[0]["began"]),
        **weigh_ledger(runs[1], rows[-1]["ended"] - rows[0]["began"]),
    }
    is_good = not lost and not differing and losses == storm.num_steps
    return outcome if is_good else {**outcome, "exit_code": 1}


def weigh_ledger(run: Path, seconds: float) -> dict[str, Any]:
    """The parts of the run's goodput ledger, and their sum over the `seconds` that the storm took by its own clock."""
    account = add_up(read_ledger(run))
    parts = {kind: _round(part) for kind, part in account.seconds.items() if part}
    share = sum(account.seconds.values()) / seconds
    return {"goodput": round(account.goodput, 4), "ledger_s": parts, "ledger_over_clock": round(share, 4)}


def differing_arrays(one: Path, other: Path) -> list[str]:
    """Names of the arrays of two runs' newest checkpoints that are not bitwise the same; both are verified first."""
    left, right = _final_arrays(one), _final_arrays(other)
    return [
        name
        for name in sorted(left.keys() | right.keys())
        if name not in left or name not in right or left[name].tobytes() != right[name].tobytes()
    ]


def _final_arrays(run: Path) -> dict[str, np.ndarray]:
    path, sharding = find_verified(run), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {part: saved_shapes(path, part) for part in PARTS}
    loaded = load_parts(path, jax.tree.map(lambda x: x.update(sharding=sharding), shapes))
    arrays = {jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree_util.tree_leaves_with_path(loaded)}
    return {**arrays, "step": np.asarray(int(path.name))}


def count_same_losses(one: Path, other: Path) -> int:
    """How many training steps have the same numbers in two runs' metrics, clocks apart."""
    left, right = (_numbers(run) for run in (one, other))
    return sum(left[step] == right.get(step) for step in left)


def _numbers(run: Path) -> dict[int, dict[str, Any]]:
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    return {row["step"]: {n: v for n, v in row.items() if not n.endswith(CLOCKS)} for row in rows}


def tabulate(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A line for each kind that struck, by COLUMNS, and one for all."""
    struck = [row for row in rows if row["struck"]]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in struck)]
    groups = [(kind, [row for row in struck if row["kind"] == kind]) for kind in kinds]
    return [_line(name, group) for name, group in [*groups, ("all", struck)]]


def _line(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    codes = collections.Counter("+".join(map(str, sorted(row["codes"]))) for row in rows)
    repeated = [row["repeated"] for row in rows]
    values = (
        name,
        str(len(rows)),
        ", ".join(f"{code} x {count}" for code, count in codes.most_common()) if name != "all" else "",
        str(sum(row["in_save"] for row in rows)),
        str(sum(row["lost"] for row in rows)),
        f"{sum(repeated)} (at most {max(repeated, default=0)})",
        _spread(row["exit_s"] for row in rows),
        _spread(row["first_step_s"] for row in rows if row["first_step_s"] is not None),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _spread(values: Iterable[float]) -> str:
    """Median and largest."""
    values = list(values)
    return f"{statistics.median(values):.1f} (at most {max(values):.1f})" if values else ""


def rich_table(lines: Sequence[dict[str, str]]) -> Table:
    """For a terminal."""
    table = Table(*COLUMNS)
    for line in lines:
        table.add_row(*line.values())
    return table


def markdown(lines: Sequence[dict[str, str]]) -> str:
    """For a page."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(line.values() for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _round(seconds: float) -> float:
    return round(seconds, 1)
