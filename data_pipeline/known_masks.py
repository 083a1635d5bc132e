"""Which tokens of a training sample are known (held clean): text to video, animate, extend, interpolate, inpaint.

Drawn on the token grid of the window itself. Latent 0 codes one frame and every later latent leans on the past, so a
known first frame or prefix is exactly what sampling will be given.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool

from data_pipeline.errors import UserError

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class KnownProbabilities:
    """How often each mask is drawn; what remains to 1 has nothing known.

    `first`: latent frame 0. `prefix`: the first k, 1 <= k < F. `ends`: the first and the last. `frames`: any
    subset. `region`: in all frames, all tokens outside a box, or all inside it.
    """

    first: float = 0.0
    prefix: float = 0.0
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


def _from_frames(grid: Grid, frames: np.ndarray | slice | list[int]) -> np.ndarray:
    known = np.zeros(grid, bool)
    known[frames] = True
    return known


def _first(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    return _from_frames(grid, slice(0, 1))


def _prefix(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    return _from_frames(grid, slice(0, int(rng.integers(1, max(grid[0], 2)))))


def _ends(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    return _from_frames(grid, [0, -1])


def _frames(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    return _from_frames(grid, rng.random(grid[0]) < rng.random())


def _region(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """A box of a quarter to three quarters of each side, known outside of it (inpaint) or inside (outpaint)."""
    inside = np.zeros(grid, bool)
    box: list[slice] = []
    for length in grid[1:]:
        side = max(1, round(length * rng.uniform(0.25, 0.75)))
        start = int(rng.integers(0, length - side + 1))
        box.append(slice(start, start + side))
    inside[:, box[0], box[1]] = True
    return inside if rng.random() < 0.5 else ~inside


_MASKS: dict[str, Callable[[np.random.Generator, Grid], np.ndarray]] = {
    "first": _first, "prefix": _prefix, "ends": _ends, "frames": _frames, "region": _region,
}  # fmt: skip
