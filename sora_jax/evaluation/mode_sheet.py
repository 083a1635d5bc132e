"""A sheet of what a generator makes in each mode: a row of frames each, those that were shown to it underlined."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MOST_FRAMES = 12
KNOWN_COLOUR = "tab:green"

Row = tuple[str, str, UInt8[np.ndarray, "_ _ _ 3"], Bool[np.ndarray, " _"]]
"""(mode, prompt, frames, which of them are known)."""


def draw_modes(rows: Sequence[Row], path: Path) -> None:
    """Writes the sheet as an image, the kind by the ending of `path`."""
    columns = max(min(len(frames), MOST_FRAMES) for _, _, frames, _ in rows)
    figure = Figure(figsize=(1.2 * columns, 1.6 * len(rows)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.01, top=1 - 0.3 / (1.6 * len(rows)), wspace=0.05, hspace=0.35
    )
    for line, (mode, prompt, frames, known) in zip(axes, rows, strict=True):
        chosen = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
        for axis in line:
            axis.set_axis_off()
        for axis, number in zip(line, chosen, strict=False):
            axis.imshow(frames[number], interpolation="nearest")
            if known[number]:
                axis.plot(
                    [0, 1], [-0.05, -0.05], color=KNOWN_COLOUR, linewidth=4, transform=axis.transAxes, clip_on=False
                )
        line[0].set_title(f"{mode}: “{prompt}”", loc="left", fontsize=9)
    figure.savefig(path, dpi=80)
