"""Exact probes of the synthetic worlds: which objects a video shows, of what colour and shape, moving where.

The backgrounds are grey, the objects are not. The *chroma* of a pixel, its colour minus its mean, is therefore the
chroma of the object's colour times the share of the pixel that the object covers: projecting one on the other gives
an antialiased mask. The colour is the palette's entry of nearest hue; the shape is the one whose own antialiased
drawing, at the mask's centroid and of the mask's area, overlaps the mask best; the direction comes from the centroid's
track. Only numpy: no model judges another model here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import binary_dilation

from data_pipeline.errors import UserError
from data_pipeline.synthetic.palette import COLOURS, DIRECTIONS
from data_pipeline.synthetic.shapes import DISTANCES
from sora_jax.evaluation.prompts import STILL, Claim, Vocabulary

MIN_COVER = 0.5  # a pixel belongs to an object that covers half of it
MIN_AREA_PIXELS = 4.0
MIN_AREA_SHARE = 0.2  # of the largest object's area: smaller blobs are compression's or a sample's crumbs
SEEN_SHARE = 0.4  # of an object's full area: frames that show less of it say nothing of where it is
WHOLE_SHARE = 0.85  # of an object's full area: frames that show less of it (cut off, covered) say nothing of its shape
MIN_MOVE_PIXELS = 1.5
MIN_CHROMA = 20.0  # of 255; a grey object looks like the ground

Video = UInt8[np.ndarray, "T Y X 3"]
Cover = Float[np.ndarray, "T Y X"]


@dataclass(frozen=True)
class Observation:
    """One object as seen. `area_pixels` is what it has where it is seen whole; `overlap` is the best shape's, 0 to 1.

    `track` is the centroid, (x, y) in pixels, in the frames that show enough of it.
    """

    colour: str
    shape: str
    direction: str
    area_pixels: float
    overlap: float
    track: tuple[tuple[float, float], ...]


def probe_video(frames: Video, vocabulary: Vocabulary = Vocabulary()) -> tuple[Observation, ...]:  # noqa: B008
    """The objects in view, largest first; empty if nothing coloured is there. An image's direction is "still".

    Raises `UserError` for a vocabulary with a grey or white: these objects have no hue to be found by.
    """
    covers = covers_of(frames, vocabulary.colours)
    areas = {colour: _full_area(cover.sum((1, 2))) for colour, cover in covers.items()}
    least = max(MIN_AREA_PIXELS, MIN_AREA_SHARE * max(areas.values(), default=0.0))
    visible = sorted((colour for colour in covers if areas[colour] >= least), key=lambda colour: -areas[colour])
    return tuple(_observe(colour, covers[colour], vocabulary) for colour in visible)


def follow(frames: Video, colour: str, vocabulary: Vocabulary = Vocabulary()) -> Float[np.ndarray, "T 2"]:  # noqa: B008
    """The centroid (x, y) in pixels of the object of a colour in each frame; NaN where too little of it is seen."""
    cover = covers_of(frames, vocabulary.colours)[colour]
    area = cover.sum((1, 2))
    seen = area >= max(MIN_AREA_PIXELS, SEEN_SHARE * _full_area(area))
    return track_of(cover, area, seen)


def track_of(cover: Cover, area: Float[np.ndarray, " T"], seen: Bool[np.ndarray, " T"]) -> Float[np.ndarray, "T 2"]:
    """The mask's centroid (x, y) in the frames in which it is `seen`; NaN in the others."""
    track = np.full((len(cover), 2), np.nan)
    track[seen] = _centroids(cover[seen], area[seen])
    return track


Thing = TypeVar("Thing", Observation, Claim)  # what is seen, or what another scene's caption says to be there


def match(claims: Sequence[Claim], things: Sequence[Thing]) -> list[Thing | None]:
    """One object a claim, out of the first (largest) as many as there are claims: the pairing best for the claims."""
    candidates: list[Thing | None] = [*things[: len(claims)], *[None] * (len(claims) - len(things))]

    def num_true(order: Sequence[Thing | None]) -> int:
        return sum(sum(verdict.values()) for verdict in judge(claims, order))

    return list(max(permutations(candidates), key=num_true))


def judge(claims: Sequence[Claim], things: Sequence[Thing | None]) -> list[dict[str, bool]]:
    """For each claim, which of its attributes hold of its object (see `match`); all are false of an absent one."""
    return [
        {name: thing is not None and getattr(thing, name) == value for name, value in claim.items().items()}
        for claim, thing in zip(claims, things, strict=True)
    ]


def covers_of(frames: Video, colours: Sequence[str]) -> dict[str, Cover]:
    """For each colour, the share of each pixel that objects of this colour cover."""
    chroma = _chroma(frames.astype(np.float32))
    targets = _chroma(np.array([COLOURS[colour] for colour in colours], np.float32))
    strength = np.linalg.norm(targets, axis=-1)
    if strength.min() < MIN_CHROMA:
        grey = colours[int(strength.argmin())]
        raise UserError(f"the probes find objects by hue and {grey} has none: evaluate on the quickstart or demo world")
    along = chroma @ (targets / strength[:, None]).T
    nearest = along.argmax(-1)
    share = along / strength
    solid = np.take_along_axis(share, nearest[..., None], -1)[..., 0] >= MIN_COVER
    covers = {}
    for k, colour in enumerate(colours):
        own = solid & (nearest == k)
        # the antialiased rim: pixels beside the object whose hue a codec or a decoder may have bent
        near = _grow(own) & ~(solid & (nearest != k))
        covers[colour] = np.where(near, np.clip(share[..., k], 0, 1), 0).astype(np.float64)
    return covers


def _chroma(rgb: np.ndarray) -> np.ndarray:
    return rgb - rgb.mean(-1, keepdims=True)


def _grow(mask: Bool[np.ndarray, "T Y X"]) -> Bool[np.ndarray, "T Y X"]:
    """The mask and its eight neighbours in each frame."""
    return binary_dilation(mask, np.ones((1, 3, 3), bool))


def _full_area(area: Float[np.ndarray, " T"]) -> float:
    """The area in pixels where the object is seen whole; a quantile, so that one odd frame does not decide."""
    return float(np.quantile(area, 0.9))


def _observe(colour: str, cover: Cover, vocabulary: Vocabulary) -> Observation:
    area = cover.sum((1, 2))
    full = _full_area(area)
    seen = area >= SEEN_SHARE * full
    cover, area = cover[seen], area[seen]
    track = _centroids(cover, area)
    whole = area >= WHOLE_SHARE * full
    shape, overlap = _best_shape(cover[whole], area[whole], track[whole], vocabulary.shapes)
    points = tuple((float(x), float(y)) for x, y in track)
    return Observation(colour, shape, heading(track), full, overlap, points)


def _centroids(cover: Cover, area: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 2"]:
    """The mask's centroid in each frame, (x, y) in pixels; the centre of the top left pixel is (0.5, 0.5)."""
    y, x = (np.arange(n) + 0.5 for n in cover.shape[1:])
    return np.stack([(cover.sum(1) * x).sum(-1), (cover.sum(2) * y).sum(-1)], -1) / area[:, None]


def heading(track: Float[np.ndarray, "n 2"]) -> str:
    """Where a track leads first: left, right, up, down, or still.

    A body that bounces comes back, so what counts is the way to the turning point: the point of the track that is
    farthest from the start along the dimension that moves more.
    """
    if len(track) < 2:
        return STILL
    away = track - track[0]
    span = np.ptp(track, axis=0)
    axis = int(span.argmax())
    if span[axis] < MIN_MOVE_PIXELS:
        return STILL
    turn = _first_turn(away[:, axis])
    step = away[turn, axis]
    return next(name for name, unit in DIRECTIONS.items() if unit[axis] * step > 0)


def _first_turn(away: Float[np.ndarray, " n"]) -> int:
    """The frame at which a track that left 0 first comes back by more than the noise of a centroid."""
    for i in range(1, len(away)):
        farthest = int(np.abs(away[: i + 1]).argmax())
        if abs(away[farthest]) >= MIN_MOVE_PIXELS and abs(away[farthest] - away[i]) >= MIN_MOVE_PIXELS:
            return farthest
    return int(np.abs(away).argmax())


def _best_shape(
    cover: Cover, area: Float[np.ndarray, " T"], track: Float[np.ndarray, "T 2"], shapes: Sequence[str]
) -> tuple[str, float]:
    """The shape whose drawing overlaps the mask best, by intersection over union summed over the frames."""
    y, x = (np.arange(n, dtype=np.float32) + np.float32(0.5) for n in cover.shape[1:])
    scores = {}
    for shape in shapes:
        size = np.sqrt(area / _unit_area(shape)).astype(np.float32)[:, None, None]
        dx = (x[None, None, :] - track[:, 0, None, None].astype(np.float32)) / size
        dy = (y[None, :, None] - track[:, 1, None, None].astype(np.float32)) / size
        drawing = np.clip(0.5 - DISTANCES[shape](*np.broadcast_arrays(dx, dy)) * size, 0, 1)
        scores[shape] = float(np.minimum(cover, drawing).sum() / np.maximum(cover, drawing).sum())
    best = max(scores, key=scores.__getitem__)
    return best, scores[best]


def _unit_area(shape: str) -> float:
    """The area of a shape of size 1, by counting a fine grid once."""
    if shape not in _UNIT_AREAS:
        grid = np.linspace(-0.7, 0.7, 561, dtype=np.float32)
        inside = DISTANCES[shape](*np.meshgrid(grid, grid)) < 0
        _UNIT_AREAS[shape] = float(inside.mean() * (grid[-1] - grid[0]) ** 2)
    return _UNIT_AREAS[shape]


_UNIT_AREAS: dict[str, float] = {}
