"""Which tokens of a training sample are known (held clean), so that one model learns all that sampling may ask of it.

Drawn on the token grid of the window itself. Latent 0 codes one frame and every later latent leans on the past: a
known first frame or prefix is exactly what sampling will be given, and known latents further on nearly so, since
sampling encodes them without the past that they had in training (`docs/prompting.md` has the distance).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool

from data_pipeline.errors import UserError

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class KnownProbabilities:
    """How often each mask is drawn; what remains to 1 has nothing known (text to video).

    `first`: latent frame 0 (animate a still). `prefix`: the first k, 1 <= k < F (extend forward). `suffix`: the last
    k (extend backward). `ends`: the first a and the last b, a + b < F (connect, loop). `frames`: any subset, each as
    likely to be sparse as dense (key frames). `region`: a box, or all but a box, in all frames or in a run of them
    (inpaint, outpaint, inpaint in time). Every k, and every a + b, is equally likely.
    """

    first: float = 0.0
    prefix: float = 0.0
    suffix: float = 0.0
    ends: float = 0.0
    frames: float = 0.0
    region: float = 0.0

    def __post_init__(self) -> None:
        values = [getattr(self, field.name) for field in fields(self)]
        if min(values) < 0 or sum(values) > 1 + 1e-9:
            raise UserError(f"known-mask probabilities {values} must be 0 or more and sum to at most 1")


def draw_known(
    rng: np.random.Generator, grid: Grid, probabilities: KnownProbabilities
) -> Bool[np.ndarray, "F rows columns"] | None:
    """A mask over `grid` = (frames, rows, columns) tokens, or None. At least one token is left to generate.

    A mask that the grid is too small for (a first frame of a one-frame video) is none.
    """
    draw, below = rng.random(), 0.0
    for field in fields(probabilities):
        below += getattr(probabilities, field.name)
        if draw < below:
            known = _MASKS[field.name](rng, grid)
            return known if known.any() and not known.all() else None
    return None


def _from_frames(grid: Grid, frames: np.ndarray | slice) -> np.ndarray:
    known = np.zeros(grid, bool)
    known[frames] = True
    return known


def _first(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    return _from_frames(grid, slice(0, 1))


def _prefix(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    return _from_frames(grid, slice(0, int(rng.integers(1, max(grid[0], 2)))))


def _suffix(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    return _from_frames(grid, slice(grid[0] - int(rng.integers(1, max(grid[0], 2))), None))


def _ends(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Several latents at an end say how things move there, which one alone does not."""
    if grid[0] < 3:
        return np.zeros(grid, bool)
    both = int(rng.integers(2, grid[0]))
    at_start = int(rng.integers(1, both))
    frames = np.zeros(grid[0], bool)
    frames[:at_start] = frames[grid[0] - (both - at_start) :] = True
    return _from_frames(grid, frames)


def _frames(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    return _from_frames(grid, rng.random(grid[0]) < rng.random())


def _region(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """A box of a quarter to three quarters of each side, known outside of it (inpaint) or inside (outpaint); half of
    the boxes last from the first frame to the last, the others for some frames."""
    inside = np.zeros(grid, bool)
    box: list[slice] = []
    for length in grid[1:]:
        side = max(1, round(length * rng.uniform(0.25, 0.75)))
        start = int(rng.integers(0, length - side + 1))
        box.append(slice(start, start + side))
    first, last = 0, grid[0] - 1
    if rng.random() < 0.5:
        first, last = np.sort(rng.integers(0, grid[0], 2))
    inside[first : last + 1, box[0], box[1]] = True
    return inside if rng.random() < 0.5 else ~inside


_MASKS: dict[str, Callable[[np.random.Generator, Grid], np.ndarray]] = {
    "first": _first, "prefix": _prefix, "suffix": _suffix, "ends": _ends, "frames": _frames, "region": _region,
}  # fmt: skip
