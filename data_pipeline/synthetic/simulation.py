"""The world `simulation`: short stories about what stays true over time, for the probes of the same names.

    permanence   a body passes behind a bar and comes out as it went in
    orbit        six balls in space, seen by a camera that orbits around them
    bounce       a body meets a wall and comes back at the same speed
    collision    two equal bodies meet and exchange their speeds
    count        two to four bodies of one colour pass behind a bar, and as many come out
    paint        a brush paints a line and leaves, the line stays
    return       the camera turns away from two bodies and back to them

A story is frames, one caption, and the truth. Its first words name its kind. Lengths are pixels, as in `scene`.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from data_pipeline.errors import UserError
from data_pipeline.synthetic.palette import COLOURS
from data_pipeline.synthetic.shapes import DISTANCES

INKS = ("red", "green", "blue", "yellow", "purple", "cyan")
BODIES = ("circle", "square", "triangle")
NUMBERS = ("zero", "one", "two", "three", "four")
GROUND, BAR = (16, 40), 128
SIZE, FRAMES, FPS = (48, 48), 17, 8.0
LEAST_SIDE, LEAST_FRAMES = 40, 17
STREAM = 1001
"""Apart from the random numbers of the other worlds."""
TILT_RAD = 0.35
"""How far above the horizon the orbiting camera is."""


@dataclass(frozen=True)
class Sprite:
    """A body as it is seen: `track` its centroid in screen pixels and `depth` (larger is nearer) a row a frame; with
    `paints` everything that it passed over stays painted in a line of half its size."""

    colour: str
    shape: str
    size_px: float
    track: Float[np.ndarray, "T 2"]
    depth: Float[np.ndarray, " T"] | None = None
    paints: bool = False


@dataclass(frozen=True)
class Story:
    """One clip. `bar` is (left, right) of a grey bar from top to bottom; `truth` what only the renderer knows."""

    kind: str
    width: int
    height: int
    num_frames: int
    sprites: tuple[Sprite, ...]
    caption: str
    ground: int
    bar: tuple[float, float] | None = None
    truth: dict[str, Any] = field(default_factory=dict)
    world: str = "simulation"
    fps: float = FPS


def draw_story(seed: int, index: int, size: tuple[int, int] | None = None, frames: int | None = None) -> Story:
    """Clip `index`: the kinds take turns. `size` is (width, height). Raises UserError for what is too small."""
    if min(size or SIZE) < LEAST_SIDE or (frames or FRAMES) < LEAST_FRAMES:
        raise UserError(
            f"the simulation world needs {LEAST_SIDE} pixels a side and {LEAST_FRAMES} frames, asked for are "
            f"{size or SIZE} and {frames or FRAMES}"
        )
    rng = np.random.default_rng([STREAM, seed, index])
    kind = list(KINDS)[index % len(KINDS)]
    width, height = size or SIZE
    return KINDS[kind](rng, width, height, frames or FRAMES)


def render_story(story: Story) -> UInt8[np.ndarray, "T Y X 3"]:
    """The frames, antialiased over one pixel."""
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) + 0.5 for n in (story.height, story.width)), indexing="ij")
    pixels = np.full((story.num_frames, story.height, story.width, 3), story.ground, np.float32)
    for t in range(story.num_frames):
        for sprite in story.sprites:
            if sprite.paints:
                line = _line(sprite.track[: t + 1].astype(np.float32), x, y) - sprite.size_px / 4
                _cover(pixels[t], np.clip(0.5 - line, 0, 1), sprite.colour)
        order = sorted(story.sprites, key=lambda s, t=t: 0.0 if s.depth is None else float(s.depth[t]))
        for sprite in order:
            size = np.float32(sprite.size_px)
            column, row = sprite.track[t].astype(np.float32)
            distance = DISTANCES[sprite.shape]((x - column) / size, (y - row) / size) * size
            _cover(pixels[t], np.clip(0.5 - distance, 0, 1), sprite.colour)
    if story.bar is not None:
        cover = np.clip(0.5 - np.maximum(story.bar[0] - x, x - story.bar[1]), 0, 1)[..., None]
        pixels += cover * (BAR - pixels)
    return (pixels + 0.5).astype(np.uint8)


def _cover(pixels: Float32[np.ndarray, "Y X 3"], cover: Float32[np.ndarray, "Y X"], colour: str) -> None:
    pixels += cover[..., None] * (np.float32(COLOURS[colour]) - pixels)


def _line(track: Float32[np.ndarray, "n 2"], x: Float32[np.ndarray, "Y X"], y: Float32[np.ndarray, "Y X"]):
    """The distance of each pixel to a path."""
    best = np.hypot(x - track[0, 0], y - track[0, 1])
    for start, end in itertools.pairwise(track):
        way = end - start
        along = np.clip(((x - start[0]) * way[0] + (y - start[1]) * way[1]) / max(float(way @ way), 1e-9), 0, 1)
        best = np.minimum(best, np.hypot(x - start[0] - along * way[0], y - start[1] - along * way[1]))
    return best


def truth_of(story: Story) -> dict[str, Any]:
    """What is written beside a clip."""
    about = {name: getattr(story, name) for name in ("world", "kind", "width", "height", "num_frames", "fps")}
    bodies = [
        {"colour": s.colour, "shape": s.shape, "size_px": round(s.size_px, 3), "track": np.round(s.track, 2).tolist()}
        for s in story.sprites
    ]
    return about | {"bar": story.bar, "objects": bodies, "truth": story.truth}


def _across(low: float, high: float, num_frames: int) -> Float[np.ndarray, " T"]:
    return np.linspace(low, high, num_frames)


def _path(x, y, num_frames: int) -> Float[np.ndarray, "T 2"]:
    return np.stack([np.broadcast_to(x, num_frames), np.broadcast_to(y, num_frames)], -1).astype(float)


def _ground(rng: np.random.Generator) -> int:
    return int(rng.integers(*GROUND))


def _permanence(rng: np.random.Generator, width: int, height: int, num: int) -> Story:
    colour, shape, size = str(rng.choice(INKS)), str(rng.choice(BODIES)), 0.21 * width
    x = _across(0.75 * size, width - 0.75 * size, num)
    to, track = "right", _path(x, rng.uniform(size, height - size), num)
    if rng.random() < 0.5:
        to, track = "left", track[::-1].copy()
    half = 0.65 * size
    caption = f"permanence: a {colour} {shape} moves {to} behind a grey bar and comes out again"
    bar = (width / 2 - half, width / 2 + half)
    return Story("permanence", width, height, num, (Sprite(colour, shape, size, track),), caption, _ground(rng), bar)


def _orbit(rng: np.random.Generator, width: int, height: int, num: int) -> Story:
    order = rng.permutation(len(INKS))
    side, size = min(width, height), 0.11 * min(width, height)
    azimuth = 2 * np.pi * (np.arange(len(INKS)) + rng.uniform(-0.3, 0.3, len(INKS))) / len(INKS)
    radius = rng.uniform(0.2, 0.36, len(INKS)) * side
    heights = (rng.permutation(len(INKS)) / (len(INKS) - 1) - 0.5) * 0.6 * side
    turn = float(rng.choice([-1, 1]) * rng.uniform(0.9, 1.5))
    angles = azimuth[None] + _across(0, turn, num)[:, None]
    across, deep = radius * np.cos(angles), radius * np.sin(angles)
    x = width / 2 + across
    y = height / 2 - heights * np.cos(TILT_RAD) + deep * np.sin(TILT_RAD)
    near = deep * np.cos(TILT_RAD) + heights * np.sin(TILT_RAD)
    sprites = tuple(Sprite(INKS[k], "circle", size, np.stack([x[:, k], y[:, k]], -1), near[:, k]) for k in order)
    caption = "orbit: a camera orbits around six balls that float in space"
    return Story("orbit", width, height, num, sprites, caption, _ground(rng), truth={"turn_rad": turn})


def _bounce(rng: np.random.Generator, width: int, height: int, num: int) -> Story:
    colour, shape, size = str(rng.choice(INKS)), "circle", 0.21 * width
    start, wall, hit = rng.uniform(0.55, 0.9) * size, width - size / 2, rng.uniform(0.5, 0.62) * (num - 1)
    speed = (wall - start) / hit
    x = wall - np.abs(wall - start - speed * np.arange(num))
    track = _path(x, rng.uniform(size, height - size), num)
    to = "right"
    if rng.random() < 0.5:
        to, track = "left", np.stack([width - track[:, 0], track[:, 1]], -1)
    caption = f"bounce: a {colour} {shape} moves {to}, bounces off the edge and comes back"
    return Story("bounce", width, height, num, (Sprite(colour, shape, size, track),), caption, _ground(rng))


def _collision(rng: np.random.Generator, width: int, height: int, num: int) -> Story:
    colours, size = rng.choice(INKS, 2, replace=False), 0.2 * width
    times = np.arange(num)
    left, right = 0.6 * size, width - 0.6 * size
    gap = right - left - size
    hit = rng.uniform(0.56, 0.62) * (num - 1)
    share = rng.uniform(0.44, 0.56)
    v = np.array([share, -(1 - share)]) * gap / hit
    after = np.maximum(times - hit, 0)
    before = np.minimum(times, hit)
    row = rng.uniform(size, height - size)
    first = _path(left + v[0] * before + v[1] * after, row, num)
    second = _path(right + v[1] * before + v[0] * after, row, num)
    sprites = (Sprite(str(colours[0]), "circle", size, first), Sprite(str(colours[1]), "circle", size, second))
    caption = f"collision: a {colours[0]} circle and a {colours[1]} circle run into each other and part again"
    return Story("collision", width, height, num, sprites, caption, _ground(rng))


def _count(rng: np.random.Generator, width: int, height: int, num: int) -> Story:
    count, colour, size = int(rng.integers(2, 5)), str(rng.choice(INKS)), 0.15 * width
    rows = height * (np.arange(count) + 0.5) / count
    x = _across(0.75 * size, width - 0.75 * size, num)
    offsets = rng.uniform(-0.1, 0.1, count) * size
    sprites = tuple(Sprite(colour, "circle", size, _path(x + offsets[k], rows[k], num)) for k in range(count))
    half = 0.8 * size
    caption = f"count: {NUMBERS[count]} {colour} circles pass behind a grey bar and come out again"
    bar = (width / 2 - half, width / 2 + half)
    return Story("count", width, height, num, sprites, caption, _ground(rng), bar, {"count": count})


def _paint(rng: np.random.Generator, width: int, height: int, num: int) -> Story:
    colour, size = str(rng.choice(INKS)), 0.2 * width
    row, slope = rng.uniform(0.3, 0.7) * height, rng.uniform(-0.3, 0.3) * height
    x = _across(size, width + 2 * size, num)
    track = _path(x, row + slope * (x - width / 2) / width, num)
    if rng.random() < 0.5:
        track = np.stack([width - track[:, 0], track[:, 1]], -1)
    caption = f"paint: a {colour} brush paints a line across the picture and leaves"
    return Story(
        "paint", width, height, num, (Sprite(colour, "circle", size, track, None, True),), caption, _ground(rng)
    )


def _return(rng: np.random.Generator, width: int, height: int, num: int) -> Story:
    colours, size = rng.choice(INKS, 2, replace=False), 0.2 * width
    away = np.concatenate([np.linspace(0, 1, (num + 1) // 2), np.linspace(1, 0, num - (num + 1) // 2 + 1)[1:]])
    shift = float(rng.choice([-1, 1])) * 1.25 * width * np.sin(away * np.pi / 2) ** 2
    shapes = [str(shape) for shape in rng.choice(BODIES, 2)]
    sprites = []
    for k in range(2):
        column, row = (0.3 + 0.4 * k + rng.uniform(-0.06, 0.06)) * width, rng.uniform(0.3, 0.7) * height
        sprites.append(Sprite(str(colours[k]), shapes[k], size, _path(column + shift, row, num)))
    things = " and ".join(f"a {colours[k]} {shapes[k]}" for k in range(2))
    caption = f"return: the camera turns away from {things} and back to them"
    return Story("return", width, height, num, tuple(sprites), caption, _ground(rng))


KINDS: dict[str, Callable[[np.random.Generator, int, int, int], Story]] = {
    "permanence": _permanence,
    "orbit": _orbit,
    "bounce": _bounce,
    "collision": _collision,
    "count": _count,
    "paint": _paint,
    "return": _return,
}
