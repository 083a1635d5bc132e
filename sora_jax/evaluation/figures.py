"""Pictures for the page: curves as inline SVG that follow the reader's colours, frames as PNG strips, data URIs."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from PIL import Image

MEDIA_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif", ".png": "image/png"}

# Drawn in this colour, then replaced by the page's own text colour, so that curves follow light and dark.
INK = "#010203"
# Legible on white and on near-black alike (Okabe and Ito's colour-blind-safe set).
SERIES = ("#0f8bd9", "#e08214", "#12a37f", "#cc5fa5", "#8f7ee6", "#c9a400", "#e0564f")
DASHES = ("-", "--", ":")
"""With more curves than colours."""
MOST_POINTS = 1000
STRIP_GAP_PIXELS = 2
ERROR_GAIN = 4


def data_uri(path: Path) -> str:
    """A media file as a `data:` URI, so that the page needs nothing beside itself."""
    media_type = MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
    return bytes_uri(path.read_bytes(), media_type)


def bytes_uri(content: bytes, media_type: str) -> str:
    """A file's content as a `data:` URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def frame_strip(frames: UInt8[np.ndarray, "T Y X 3"], num_frames: int = 5) -> UInt8[np.ndarray, "y x 4"]:
    """`num_frames` frames, evenly spaced from first to last, side by side; the gaps are transparent."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int)]
    num, height, width, _ = chosen.shape
    strip = np.zeros((height, num * width + (num - 1) * STRIP_GAP_PIXELS, 4), np.uint8)
    for i, frame in enumerate(chosen):
        left = i * (width + STRIP_GAP_PIXELS)
        strip[:, left : left + width, :3] = frame
        strip[:, left : left + width, 3] = 255
    return strip


def comparison_sheet(
    original: UInt8[np.ndarray, "T Y X 3"], *decoded: UInt8[np.ndarray, "T Y X 3"]
) -> UInt8[np.ndarray, "y x 4"]:
    """A clip's frames, and below them each of what was made of them with its error, `ERROR_GAIN` times as large."""
    strips = [frame_strip(original)]
    for frames in decoded:
        error = np.minimum(np.abs(frames.astype(np.int16) - original) * ERROR_GAIN, 255).astype(np.uint8)
        strips += [frame_strip(frames), frame_strip(error)]
    gap = np.zeros((STRIP_GAP_PIXELS, *strips[0].shape[1:]), np.uint8)
    return np.concatenate([strips[0], *(part for strip in strips[1:] for part in (gap, strip))])


def png_uri(image: UInt8[np.ndarray, "y x c"]) -> str:
    """An RGB or RGBA image as a PNG `data:` URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return bytes_uri(buffer.getvalue(), MEDIA_TYPES[".png"])


def curves_svg(
    series: dict[str, tuple[Sequence[float], Sequence[float]]],
    ylabel: str,
    *,
    xlabel: str = "step",
    log_x: bool = False,
    log_y: bool = False,
    smooth: bool = False,
    small: bool = False,
    legend: bool = True,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> str:
    """Named curves (x, y) as one `<svg>` element without fixed colours for text or ground.

    `smooth` draws the raw values faintly and their exponential average, over a fiftieth of the points, on top. `bands`
    are (low, high) around a curve, by its name; NaN where there is none. `small` is for many beside each other. An
    empty curve keeps its place among the colours (`look`), so that several figures can share one legend.
    """
    style = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11, "axes.linewidth": 0.8}
    style |= {f"{part}.color": INK for part in ("text", "xtick", "ytick")} | {"axes.labelcolor": INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.5) if small else (6.4, 3.0), layout="constrained")
        axes = figure.subplots()
        for i, (name, (x, y)) in enumerate(series.items()):
            if not len(x):
                continue
            colour, dashes = look(i)
            if smooth and len(y) > 20:
                axes.plot(*_thinned(x, y), color=colour, alpha=0.22, linewidth=1)
                y = running_average(np.asarray(y, float), span=max(len(y) // 50, 4))
            if bands and name in bands:
                axes.fill_between(x, *bands[name], color=colour, alpha=0.16, linewidth=0)
            points = {"marker": "o" if len(x) <= 20 else None, "markersize": 3 if len(x) > 1 else 5}
            axes.plot(*_thinned(x, y), color=colour, label=name, linewidth=1.8, linestyle=dashes, **points)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear")
        if log_y:
            axes.set_yscale("log", subs=())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(color=INK, alpha=0.1, which="major")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        if legend and len(series) > 1:
            figure.legend(loc="outside upper center", frameon=False, ncols=min(len(series), 4), fontsize=9)
        return _inline_svg(figure, salt=f"{ylabel} {xlabel} {sorted(series)}")


def look(number: int) -> tuple[str, str]:
    """The colour and the dashes of a figure's curve by its number."""
    return SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)]


def _thinned(x: Sequence[float], y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` of a curve, evenly spread, first and last among them: a page is not made for a million."""
    chosen = np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int)
    return np.asarray(x)[chosen], np.asarray(y)[chosen]


def running_average(y: np.ndarray, span: int) -> np.ndarray:
    """Exponential average whose start is not biased towards zero."""
    keep = 1 - 1 / span
    total = weight = 0.0
    averaged = np.empty_like(y)
    for i, value in enumerate(y):
        total, weight = keep * total + value, keep * weight + 1
        averaged[i] = total / weight
    return averaged


def _inline_svg(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):  # the same figure gives the same bytes, two never share ids
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace(INK, "currentColor")
