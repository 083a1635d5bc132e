"""How far each solver's samples are from those of very many Euler steps, by the number of network calls.

The distance is the root mean square difference of the normalised latents over the reference's own deviation: 0 is the
same sample, 1.4 another one. Euler's own error ends the curves: how far its reference is from that of a
second-order solver is measured too.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from data_pipeline.errors import UserError, from_os_error
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.generation import Request
from sora_jax.diffusion.samplers import SOLVERS, Solver
from sora_jax.evaluation.figures import SERIES
from sora_jax.generation.loading import TrainedRun

REFERENCE, CHECK, CHECK_SHARE = "euler", "midpoint", 4
"""The check, of second order, takes a quarter of the reference's calls: its own error is far below."""


class Point(NamedTuple):
    """A solver's distance after so many network calls."""

    solver: str
    steps: int
    calls: int
    distance: float


class Curves(NamedTuple):
    """Every solver's distances at one guidance scale; `reference_error` is the reference's own distance to CHECK's."""

    guidance: float
    reference_steps: int
    reference_error: float
    points: list[Point]


def measure_distances(
    run: TrainedRun,
    requests: Sequence[Request],
    guidance: float,
    solvers: Mapping[str, Solver],
    calls: Sequence[int],
    reference_steps: int,
    say: Callable[[str], None] = lambda line: None,
    rows_per_batch: int = 8,
) -> Curves:
    """Samples `requests` by each of `solvers` with each number of network calls that its steps can make."""

    def sample(solver: str, num_calls: int) -> np.ndarray:
        sampling = SamplingConfig(num_calls // SOLVERS[solver].evaluations, guidance, solver)
        found = sorted(run.sampler.sample(run.params, run.frozen, requests, sampling, rows_per_batch), key=_number)
        return np.concatenate([np.ravel(latents) for _, latents in found])

    say(f"guidance {guidance:g}: {reference_steps} Euler steps")
    reference = sample(REFERENCE, reference_steps)
    points = []
    for solver, method in solvers.items():
        for steps in sorted({n // method.evaluations for n in calls} - {0}):
            made = steps * method.evaluations
            points.append(Point(solver, steps, made, distance(sample(solver, made), reference)))
            say(f"guidance {guidance:g}: {solver}, {made} calls: {points[-1].distance:.4f}")
    return Curves(
        guidance, reference_steps, distance(sample(CHECK, max(reference_steps // CHECK_SHARE, 2)), reference), points
    )


def distance(x: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square difference over the reference's deviation."""
    return float(np.sqrt(np.mean(np.square(x - reference))) / np.std(reference))


def draw_distances(curves: Sequence[Curves], path: Path) -> None:
    """One panel a guidance scale, both axes logarithmic. Raises UserError for an ending that is no picture's."""
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"a picture is written as .png or .svg, not as '{path.suffix}': {path}")
    with matplotlib.rc_context({"font.size": 10, "axes.linewidth": 0.8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(1.2 + 4.6 * len(curves), 4.2), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
        for axes, found in zip(panels, curves, strict=True):
            _draw_panel(axes, found)
        panels[0].set_ylabel("distance to the reference (RMS / its deviation)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise from_os_error(error, f"writing {path}") from error


def _draw_panel(axes: Any, found: Curves) -> None:
    for colour, solver in zip(SERIES, dict.fromkeys(p.solver for p in found.points), strict=False):
        points = [p for p in found.points if p.solver == solver]
        axes.plot([p.calls for p in points], [p.distance for p in points], "o-", color=colour, label=solver, ms=4)
    axes.axhline(found.reference_error, color="0.6", linestyle=":", label="the reference's own error")
    title = "without guidance" if found.guidance == 1.0 else f"guidance {found.guidance:g}"
    axes.set(xscale="log", yscale="log", xlabel="network calls", title=title)
    ticks = sorted({p.calls for p in found.points})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)


def as_json(curves: Sequence[Curves]) -> list[dict[str, Any]]:
    """Plain values of all curves."""
    return [{**c._asdict(), "points": [p._asdict() for p in c.points]} for c in curves]


def _number(found: tuple[int, Any]) -> int:
    return found[0]
