"""What a shown frame is, at which rate frames are shown, and what becomes of a decoder's exceptions."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipeline.errors import UserError

IMAGE_FPS = 24.0  # an image has no rate: this one makes it a video of one frame
Source = Path | str | bytes

_COMMON_RATES = [Fraction(n * 1000, d) for n in (24, 30, 60, 120) for d in (1000, 1001)]


@dataclass(frozen=True)
class VideoInfo:
    """What a file declares. `height` and `width` are display pixels; `num_frames` counts what is meant to be shown,
    at `fps`: the measured rate, or for a variable rate the rate of its usual frame distance."""

    media_type: str
    codec: str
    num_frames: int
    fps: float
    constant_rate: bool
    duration_s: float
    height: int
    width: int
    has_audio: bool
    colour: dict[str, str]
    geometry: str


@dataclass(frozen=True)
class Frame:
    """One shown frame: its time, whether the decoder had to conceal damage, and its pixels when asked for.

    `size` is (height, width) on display; `geometry` says how the coded picture was turned or stretched ("" if not).
    `scaled(height, width)` are its pixels at another size, for a fraction of the time where that is much smaller; None
    where the source cannot do that.
    """

    time_s: float
    corrupt: bool
    colour: dict[str, str]
    size: tuple[int, int]
    geometry: str
    rgb: Callable[[], UInt8[np.ndarray, "Y X 3"]]
    scaled: Callable[[int, int], UInt8[np.ndarray, "y x 3"]] | None = None


def frame_rate(times_s: list[float], declared: float) -> tuple[float, bool]:
    """(rate, whether it is constant) of ascending frame times; `declared` decides only for a single frame.

    Containers round timestamps (to 1 ms in Matroska and FLV), so a rate within 0.5% of the declared or 0.1% of a
    common one is taken to be that.
    """
    steps = np.diff(times_s)
    steps = steps[steps > 0]
    if not len(steps):
        return (declared if 1 <= declared <= 240 else IMAGE_FPS), True
    median = float(np.percentile(steps, 50, method="lower"))  # one of the steps: its neighbourhood is never empty
    near = np.abs(steps - median) <= max(0.25 * median, 0.002)
    rate = 1 / float(steps[near].mean())
    for known, tolerance in [(declared, 0.005), *((float(r), 0.001) for r in _COMMON_RATES)]:
        if abs(rate - known) <= tolerance * known:
            return known, bool(near.all())
    return rate, bool(near.all())


def keep_frames(
    frames: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    places: Collection[int],
    change: Callable[[UInt8[np.ndarray, "_ _ 3"]], UInt8[np.ndarray, "_ _ 3"]],
) -> dict[int, UInt8[np.ndarray, "_ _ 3"]]:
    """Those at `places`, changed, in their order; one frame is in memory beside them."""
    wanted = frozenset(places)
    # A view would keep all that is around a crop.
    return {place: change(frame).copy() for place, frame in enumerate(frames) if place in wanted}


def resample(
    frames: Iterable[Frame], fps: float, num_frames: int, slack_s: float, start_s: float = 0.0
) -> Iterator[Frame]:
    """`num_frames` frames at constant `fps`: for each output time the newest frame not later than it.

    `slack_s` absorbs rounded timestamps: a frame that is late by no more than it counts as on time. The last frame is
    held to the end.
    """
    previous, emitted = None, 0
    for frame in frames:
        while previous is not None and emitted < num_frames and start_s + emitted / fps + slack_s < frame.time_s:
            yield previous
            emitted += 1
        if emitted == num_frames:
            return
        previous = frame
    while previous is not None and emitted < num_frames:
        yield previous
        emitted += 1


def source_name(source: Source) -> str:
    return "the stored video" if isinstance(source, bytes) else str(source)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """A decoder is fed anything, and says what it makes of it in any exception: each becomes a `UserError`."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{name} cannot be read: {why}") from error
