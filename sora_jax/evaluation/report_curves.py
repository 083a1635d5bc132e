"""The curves of a report's page: losses, what the optimizer did, speed, goodput, scores by step."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sora_jax.evaluation.figures import curves_svg
from sora_jax.evaluation.follow import SCORE, scored_steps, with_intervals
from sora_jax.training.ledger import KINDS, LEDGER, Account, add_up, read_ledger

Rows = Sequence[dict[str, Any]]
Series = tuple[list[float], list[float]]
Bands = Mapping[str, tuple[list[float], list[float]]]

MEASURES = {"loss": ("Loss", "loss"), "l1": ("L1 error", "L1 of pixels in [-1, 1]"), "psnr": ("PSNR", "dB")}
BUCKET = "loss_t"  # `sora_jax.objectives.diffusion` names its held-out losses so, the middle of the bucket behind it
WORK = {
    "learning_rate": ("Learning rate", "learning rate", 1.0),
    "grad_norm": ("Gradient norm", "global norm", 1.0),
    "mfu": ("MFU", "% of peak FLOP/s", 100.0),
    "padding": ("Padding", "% of the tokens", 100.0),
    "data_wait": ("Waiting for data", "% of the time", 100.0),
}
"""Numbers of a `train` row -> title, label, and what they are multiplied by."""
RATE = "_per_second"
EVALUATIONS = "evaluations"
"""Where `evaluate --follow` keeps its results beside the run, a file a step."""
LEDGER_POINTS = 100
WORTH_SHOWING = 0.5
"""Percent of the time."""
SHORT_S = 600.0


class Curve(NamedTuple):
    """One figure of the page."""

    title: str
    svg: str
    note: str = ""


class Spell(NamedTuple):
    """One kind of time in the ledger."""

    kind: str
    meaning: str
    seconds: str
    percent: float


def series(rows: Rows, kind: str, name: str, times: float = 1.0) -> Series:
    """Steps and values of one number, where it is known."""
    found = [(row["step"], times * row[name]) for row in rows if row["kind"] == kind and row.get(name) is not None]
    return [x for x, _ in found], [y for _, y in found]


def draw(
    title: str,
    ylabel: str,
    lines: Mapping[str, Series],
    note: str = "",
    *,
    xlabel: str = "step",
    bands: Bands | None = None,
    linear: bool = False,
    **options: bool,
) -> list[Curve]:
    """One figure, with a logarithmic axis where the lines span much; [] where none has two points."""
    if not any(len(xs) > 1 for xs, _ in lines.values()):
        return []
    values = [y for _, ys in lines.values() for y in ys]
    log_y = not linear and min(values) > 0 and max(values) > 8 * min(values)
    return [Curve(title, curves_svg(dict(lines), ylabel, xlabel=xlabel, log_y=log_y, bands=bands, **options), note)]


def loss_curves(metrics: Mapping[str, Rows]) -> list[Curve]:
    """Losses of the runs by name, an autoencoder's PSNR, and the held-out loss at each noise level."""
    curves = []
    for name, rows in metrics.items():
        for key, (title, ylabel) in MEASURES.items():
            both = {"training": series(rows, "train", key)} | (
                {"held out": held_out} if (held_out := series(rows, "eval", key))[0] else {}
            )
            note = "Held out: averaged parameters, the same draw each time." if held_out[0] else ""
            if key == "loss" or note:
                curves += draw(f"{title} of the {name}", ylabel, both, note, smooth=True)
        names = sorted({key for row in rows if row["kind"] == "eval" for key in row if key.startswith(BUCKET)})
        buckets = {f"t = {key.removeprefix(BUCKET)}": series(rows, "eval", key) for key in names}
        curves += draw("Held-out loss by noise level", "loss at t", buckets, "t = 0 is clean, t = 1 is noise.")
    return curves


def work_curves(metrics: Mapping[str, Rows]) -> list[Curve]:
    """What the optimizer did and how fast; a line for each run, without a legend."""
    rates = sorted({key for rows in metrics.values() for row in rows for key in row if key.endswith(RATE)})
    rated = {
        key: (f"{key.removesuffix(RATE).capitalize()} a second", f"{key.removesuffix(RATE)}/s", 1.0) for key in rates
    }
    order = ("learning_rate", "grad_norm", *rates, "mfu", "padding", "data_wait")
    curves = []
    for key in order:
        title, ylabel, times = (WORK | rated)[key]
        lines = {name: series(rows, "train", key, times) for name, rows in metrics.items()}
        if key == "data_wait" and max((y for _, ys in lines.values() for y in ys), default=0.0) < WORTH_SHOWING:
            continue  # it hardly waited: the table of time says so in a line
        if key == "padding" and not any(any(ys) for _, ys in lines.values()):
            continue  # rows that cannot be padded
        smooth, linear = key in ("grad_norm", *rates), key != "grad_norm"
        curves += draw(title, ylabel, lines, smooth=smooth, small=True, legend=False, linear=linear)
    return curves


def goodput(run: Path) -> tuple[Account | None, list[Curve]]:
    """What the run's time went into, and the share of productive time as it grew; (None, []) without a ledger."""
    if not (run / LEDGER).is_file():
        return None, []
    marks = read_ledger(run)
    ends = np.linspace(2, len(marks), min(LEDGER_POINTS, max(len(marks) - 1, 0))).round().astype(int)
    accounts = [add_up(marks[: int(end)]) for end in ends]
    unit, seconds = ("minutes", 60.0) if marks and marks[-1]["time"] - marks[0]["time"] > SHORT_S else ("seconds", 1.0)
    x, y = [a.wall_s / seconds for a in accounts], [100 * a.goodput for a in accounts]
    note = "Time of steps whose result the run still has."
    curves = draw("Goodput", "% of the time so far", {"goodput": (x, y)}, note, xlabel=unit, small=True, linear=True)
    return add_up(marks), curves


def spells(account: Account | None) -> list[Spell]:
    """The rows of the table of time, of kinds that took any."""
    if account is None or not account.wall_s:
        return []
    shares = {name: (account.seconds[name], 100 * account.seconds[name] / account.wall_s) for name in KINDS}
    return [
        Spell(name.replace("_", " "), KINDS[name], lasting(seconds), round(percent, 2))
        for name, (seconds, percent) in shares.items()
        if seconds
    ]


def read_scores(run: Path, rows: Rows) -> dict[str, dict[int, tuple[float, float, float]]]:
    """Score -> step -> (value, low, high) of what a follower measured; NaN where no interval is known.

    Values are the rows of kind `score`; intervals are in the follower's results, where those lie beside the run.
    """
    found: dict[str, dict[int, tuple[float, float, float]]] = {}
    for row in rows:
        if row["kind"] == SCORE:
            for name, value in row.items():
                if name not in ("step", "kind") and value is not None:
                    found.setdefault(name, {})[row["step"]] = value, math.nan, math.nan
    for step in scored_steps(run / EVALUATIONS):
        result = json.loads((run / EVALUATIONS / f"{step}.json").read_text())
        for name, (value, low, high) in with_intervals(result).items():
            if low is not None and high is not None:
                found.setdefault(name, {})[step] = float(value), float(low), float(high)
    return {name: dict(sorted(by_step.items())) for name, by_step in sorted(found.items())}


def score_curves(scores: Mapping[str, dict[str, dict[int, tuple[float, float, float]]]]) -> list[Curve]:
    """A figure for each score, with a line and its 95% interval for each run: `scores` is score -> run -> step."""
    curves = []
    for name, runs in scores.items():
        lines, bands = {}, {}
        for run, by_step in runs.items():
            value, low, high = ([one[i] for one in by_step.values()] for i in range(3))
            lines[run] = [float(step) for step in by_step], value
            bands[run] = low, high
        note = "Shaded: 95% interval." if any(not math.isnan(x) for low, _ in bands.values() for x in low) else ""
        title, label = name.replace("_", " "), name.rpartition("/")[2].replace("_", " ")
        curves += draw(title, label, lines, note, bands=bands, small=True, legend=False, linear=True)
    return curves


def training_seconds(rows: Rows) -> float:
    """Seconds of the steps alone: compilation, evaluation and saving are not in a row's `step_seconds`."""
    seconds, before = 0.0, 0
    for row in rows:
        if row["kind"] == "train":
            seconds += (row.get("step_seconds") or 0.0) * (row["step"] - before)
            before = row["step"]
    return seconds


def lasting(seconds: float) -> str:
    """A time in words of two parts at most."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
