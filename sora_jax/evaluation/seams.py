"""Seams between known and new frames: how large the step across one is beside the clip's own, and how colours drift.

A step is the mean absolute difference of two frames in grey levels (of 255), over all pixels and channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8

Video = UInt8[np.ndarray, "T Y X 3"]
LEAST_STEP = 0.1
"""Grey levels: the median step counts as at least so much, or any motion at all would be a jump in a still clip."""


@dataclass(frozen=True)
class Seams:
    """`ratios`: the step across each seam over the median of all other steps of the clip. `beyond`: how many of these
    steps are larger than every other. `loop_ratio`: the same ratio for the step from the last frame to the first."""

    ratios: tuple[float, ...]
    beyond: int
    loop_ratio: float


def measure_seams(frames: Video, seams: Sequence[int]) -> Seams:
    """`seams` are numbers of frames that follow upon one of the other kind, each from 1 to T - 1."""
    all_steps = steps(frames)
    at_seam = np.isin(np.arange(1, len(frames)), seams)
    others = all_steps[~at_seam] if (~at_seam).any() else np.zeros(1)
    usual = max(float(np.median(others)), LEAST_STEP)
    wrap = float(steps(np.stack([frames[-1], frames[0]]))[0])
    across = all_steps[at_seam]
    return Seams(tuple(float(step / usual) for step in across), int(np.sum(across > others.max())), wrap / usual)


def steps(frames: Video) -> Float[np.ndarray, " S"]:
    """The T - 1 steps between neighbours."""
    pairs = pairwise(frames)
    return np.array([np.mean(np.abs(b.astype(np.int16) - a)) for a, b in pairs], np.float64)


def known_error(frames: Video, source: UInt8[np.ndarray, "U Y X 3"], runs: Sequence[Sequence[int]]) -> int:
    """The largest difference, in grey levels, of the frames in `runs` [first, end) from the source's, in order. 0: they
    are exact. Raises ValueError if the runs are not as many frames as the source has."""
    known = np.concatenate([frames[first:end] for first, end in runs])
    if len(known) != len(source):
        raise ValueError(f"{len(known)} known frames and a source of {len(source)}")
    return int(np.max(np.abs(known.astype(np.int16) - source)))


def colour_drift(frames: Video, edges: Sequence[int]) -> Float[np.ndarray, " W"]:
    """Between `edges` lie the windows of a clip, the first of which is the source: how far, in grey levels, each later
    one's mean colour (the root mean square over red, green and blue) is from the source's."""
    windows = [frames[a:b] for a, b in pairwise(edges)]
    colours = np.stack([window.mean(axis=(0, 1, 2), dtype=np.float64) for window in windows])
    return np.sqrt(np.mean(np.square(colours[1:] - colours[0]), axis=1))
