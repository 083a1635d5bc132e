"""The scaling law as one picture: loss against compute, parameters and data, with the best that each budget gives."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from data_pipeline.errors import UserError, from_os_error
from sora_jax.evaluation.figures import SERIES
from sora_jax.sweeps.scaling import FLOPS, Law, Point

ENDINGS = (".png", ".svg")


def draw_scaling(points: Sequence[Point], law: Law, path: Path) -> None:
    """Writes a .png or .svg: each size's runs with the law through them, and on the left the best loss by compute."""
    if path.suffix not in ENDINGS:
        raise UserError(f"a picture is written as {' or '.join(ENDINGS)}, not as '{path.suffix}': {path}")
    with matplotlib.rc_context({"font.size": 10, "axes.linewidth": 0.8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 4), layout="constrained")
        compute, size, data = figure.subplots(1, 3, sharey=True)
        for i, n in enumerate(sorted({p.parameters for p in points})):
            own = sorted((p for p in points if p.parameters == n), key=lambda p: p.tokens)
            tokens = np.geomspace(own[0].tokens, own[-1].tokens, 50)
            for axes, x, line in (
                (compute, [p.flops for p in own], FLOPS * n * tokens),
                (data, [p.tokens for p in own], tokens),
            ):
                axes.plot(x, [p.loss for p in own], "o", color=SERIES[i % len(SERIES)], label=_count(n))
                axes.plot(line, law.loss(n, tokens), color=SERIES[i % len(SERIES)], linewidth=1.2)
        for i, d in enumerate(sorted({p.tokens for p in points})):
            own = sorted((p for p in points if p.tokens == d), key=lambda p: p.parameters)
            sizes = np.geomspace(own[0].parameters, own[-1].parameters, 50)
            size.plot([p.parameters for p in own], [p.loss for p in own], "o", color=SERIES[i % len(SERIES)])
            size.plot(sizes, law.loss(sizes, d), color=SERIES[i % len(SERIES)], linewidth=1.2, label=_count(d))
        budgets = np.geomspace(min(p.flops for p in points), max(p.flops for p in points), 50)
        compute.plot(budgets, [law.best(c).loss for c in budgets], "--", color="0.4", label="the best size")
        compute.set(xlabel="compute, FLOPs", ylabel="held-out loss", xscale="log", yscale="log")
        size.set(xlabel="parameters", xscale="log")
        data.set(xlabel="tokens", xscale="log")
        for axes in (size, data):  # less than a decade may lie between the ends: a label at 1, 2 and 5 of each
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _count(x)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        for axes, title in ((compute, "parameters"), (size, "tokens"), (data, "parameters")):
            axes.grid(alpha=0.15, which="both")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8, title=title)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise from_os_error(error, f"writing {path}") from error


def _count(number: float) -> str:
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"
