"""A sweep as one picture: every member's loss curve, and the final loss against one swept number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from data_pipeline.errors import UserError, from_os_error
from sora_jax.evaluation.figures import SERIES, running_average
from sora_jax.sweeps.status import Standing
from sora_jax.sweeps.tables import swept_names
from sora_jax.training.metrics import read_metrics

ENDINGS = (".png", ".svg")
DECADE = 10.0
COLOURS = matplotlib.colormaps["viridis"]

Curve = tuple[list[int], list[float]]


def draw_sweep(standings: Sequence[Standing], out: Path, path: Path, x: str = "") -> str | None:
    """Writes the picture of the sweep in `out` to `path` (.png or .svg). `x` names the swept number to draw against.

    Returns the dotted name of that number, None if nothing swept is a number. Raises UserError for another ending, an
    `x` that is not swept, and a sweep that has measured nothing yet.
    """
    if path.suffix not in ENDINGS:
        raise UserError(f"a picture is written as {' or '.join(ENDINGS)}, not as '{path.suffix}': {path}")
    x = x or _most_swept_number(standings)
    if x and x not in numbers(standings):
        raise UserError(f"{x} is not a swept number; these are: {', '.join(numbers(standings)) or 'none'}")
    curves = {s.member.name: loss_curve(out / s.member.name) for s in standings}
    shown = [s for s in standings if curves[s.member.name][0]]
    if not shown:
        raise UserError(f"no member of {out} has logged a loss yet; look at sora-jax sweep status --out {out}")
    with matplotlib.rc_context({"font.size": 10, "axes.linewidth": 0.8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(11 if x else 6.5, 4.2), layout="constrained")
        left, *right = np.atleast_1d(figure.subplots(1, 2 if x else 1))
        _draw_curves(left, shown, curves, x)
        if right:
            _draw_final(right[0], shown, x)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise from_os_error(error, f"writing {path}") from error
    return x or None


def loss_curve(folder: Path) -> Curve:
    """(steps, training losses) of one member, without the steps whose loss was not finite."""
    rows = [r for r in read_metrics(folder) if r["kind"] == "train" and r.get("loss") is not None]
    return [r["step"] for r in rows], [r["loss"] for r in rows]


def numbers(standings: Sequence[Standing]) -> list[str]:
    """The swept fields that are numbers in every member that has them, and not the same in all."""

    def values(name: str) -> list[Any]:
        return [s.member.values[name] for s in standings if name in s.member.values]

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    return [n for n in swept_names(standings) if all(map(is_number, values(n))) and len(set(values(n))) > 1]


def _most_swept_number(standings: Sequence[Standing]) -> str:
    counts = {n: len({s.member.values.get(n) for s in standings}) for n in numbers(standings)}
    return max(counts, key=counts.__getitem__, default="")


def _draw_curves(axes: Axes, standings: Sequence[Standing], curves: Mapping[str, Curve], x: str) -> None:
    """Raw values faintly, their average on top; a swept number gives each curve its place on a colour scale."""
    norm = _norm([s.member.values[x] for s in standings if x in s.member.values]) if x else None
    ends = []
    for i, standing in enumerate(standings):
        value = standing.member.values.get(x)
        colour = SERIES[i % len(SERIES)] if norm is None or value is None else COLOURS(0.92 * float(norm(value)))
        steps, losses = curves[standing.member.name]
        smooth = running_average(np.asarray(losses), span=max(len(losses) // 25, 1))
        axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth, color=colour, linewidth=1.6, label=_label(standing))
        ends += losses
    axes.set(xlabel="step", ylabel="training loss", yscale=_scale(ends))
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8, ncols=1 + len(standings) // 10)


def _draw_final(axes: Axes, standings: Sequence[Standing], x: str) -> None:
    """The final loss against `x`: one line for each combination of the other fields; held out where there is such."""
    held_out = any(s.held_out_loss is not None for s in standings)
    measured = [(s, s.held_out_loss if held_out else s.loss) for s in standings if x in s.member.values]
    groups: dict[str, list[tuple[float, float]]] = {}
    for standing, loss in measured:
        if loss is not None:
            others = {n: v for n, v in standing.member.values.items() if n != x}
            groups.setdefault(_values_text(others), []).append((standing.member.values[x], loss))
    for i, (label, points) in enumerate(groups.items()):
        values, losses = zip(*sorted(points), strict=True)
        axes.plot(values, losses, "o-", color=SERIES[i % len(SERIES)], markersize=5, linewidth=1.4, label=label)
    points = [point for group in groups.values() for point in group]
    axes.set(xlabel=x, ylabel="held-out loss, last" if held_out else "training loss, last")
    axes.set(xscale=_scale([p[0] for p in points]), yscale=_scale([p[1] for p in points]))
    _tidy(axes)
    if len(groups) > 1:
        axes.legend(frameon=False, fontsize=8)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.15, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def _scale(values: Sequence[float]) -> str:
    """Logarithmic for positive numbers that span a decade or more."""
    spans = bool(values) and min(values) > 0 and max(values) >= DECADE * min(values)
    return "log" if spans else "linear"


def _norm(values: Sequence[float]) -> Normalize:
    return (LogNorm if _scale(values) == "log" else Normalize)(min(values), max(values))


def _label(standing: Standing) -> str:
    return _values_text(standing.member.values) or f"member {standing.member.index}"


def _values_text(values: Mapping[str, Any]) -> str:
    texts = {n.rpartition(".")[2]: f"{v:g}" if isinstance(v, float) else str(v) for n, v in values.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())
