"""Large frames in tiles of one size, with seams that are blended.

A tile sees zeros beyond its edge where the whole frame has pixels, so what lies within the network's spatial reach of
an inner edge is wrong. Neighbours overlap; each tile's weight is zero within a margin of its inner edges and rises to
one over the rest of the overlap. With an overlap of twice the reach or more the margin is the reach, and tiles equal
the whole up to rounding; with less, the seam is as wrong as the outermost taps of the kernels make it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from data_pipeline.errors import UserError


@dataclass(frozen=True)
class Tiling:
    """Side of a square tile and overlap of neighbours, in pixels; both multiples of the spatial compression."""

    tile: int = 512
    overlap: int = 128

    @classmethod
    def of_option(cls, tile: int, compression: int) -> "Tiling | None":
        """`--tile`: tiles of so many pixels that overlap by a quarter, or none for 0.

        Raises UserError for a size that does not fit the autoencoder's compression.
        """
        if tile == 0:
            return None
        if tile < 4 * compression or tile % (4 * compression):
            near = 4 * compression * max(1, round(tile / (4 * compression)))
            raise UserError(f"--tile is {tile}, but must be a multiple of {4 * compression} pixels, such as {near}")
        return cls(tile, tile // 4)

    def check(self, compression: int) -> None:
        """Raises UserError for tiles that do not fit the autoencoder's compression, or do not advance."""
        if self.tile % compression or self.overlap % compression or not 0 <= self.overlap <= self.tile // 2:
            raise UserError(
                f"tiles of {self.tile} pixels that overlap by {self.overlap}: both must be multiples of {compression}, "
                f"and the overlap at most half of a tile ({self.tile // 2})"
            )


class Span(NamedTuple):
    """Where a tile lies along one side of the frame, in units of which the frame has `of`."""

    start: int
    end: int
    of: int

    def weights(self, overlap: int, reach: int) -> Float32[np.ndarray, " n"]:
        """The tile's share at each position before shares are made to add up to one."""
        margin = reach if overlap >= 2 * reach else overlap // 4
        position = np.arange(self.end - self.start) + 0.5
        share = np.ones(len(position))
        for distance, is_inner in ((position, self.start > 0), (position[::-1], self.end < self.of)):
            if is_inner:
                share = np.minimum(share, _ramp(distance - margin, overlap - 2 * margin))
        return share.astype(np.float32)


class Tile(NamedTuple):
    """One tile of a frame."""

    rows: Span
    columns: Span

    def cut(self, x: np.ndarray) -> np.ndarray:
        """This tile of `[B, T, Y, X, D]`."""
        return x[:, :, self.rows.start : self.rows.end, self.columns.start : self.columns.end]

    def scaled(self, factor: int) -> "Tile":
        """The same tile in units that are `factor` times as small."""
        return Tile(*(Span(*(factor * n for n in span)) for span in self))

    def weights(self, overlap: int, reach: int) -> Float32[np.ndarray, "y x 1"]:
        return np.outer(*(span.weights(overlap, reach) for span in self))[..., None]


def tiles(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Tiles of one size that cover a frame, in any unit; a side that is shorter than a tile is taken whole."""
    return [Tile(rows, columns) for rows in _spans(height, tile, overlap) for columns in _spans(width, tile, overlap)]


class Blend:
    """A weighted mean of tiles, kept on the host."""

    def __init__(self, overlap: int, reach: int):
        self.overlap, self.reach = overlap, reach
        self.total: Float32[np.ndarray, "B T Y X D"] | None = None
        self.weight: Float32[np.ndarray, "Y X 1"] | None = None

    def add(self, tile: Tile, values: Float[np.ndarray, "B T y x D"]) -> None:
        if self.total is None or self.weight is None:
            height, width = tile.rows.of, tile.columns.of
            self.total = np.zeros((*values.shape[:2], height, width, values.shape[-1]), np.float32)
            self.weight = np.zeros((height, width, 1), np.float32)
        share = tile.weights(self.overlap, self.reach)
        tile.cut(self.total)[...] += share * values
        tile.cut(self.weight[None, None])[...] += share

    def mean(self) -> Float32[np.ndarray, "B T Y X D"]:
        assert self.total is not None and self.weight is not None, "a frame has at least one tile"
        return self.total / self.weight


def _spans(length: int, tile: int, overlap: int) -> Iterator[Span]:
    """The last tile ends with the frame and overlaps its neighbour by more."""
    last = max(length - tile, 0)
    for start in [*range(0, last, tile - overlap), last]:
        yield Span(start, min(start + tile, length), length)


def _ramp(distance: Float[np.ndarray, " n"], length: int) -> Float[np.ndarray, " n"]:
    return np.clip(distance / length, 0.0, 1.0) if length > 0 else (distance > 0).astype(np.float64)
