"""The worlds: `quickstart` (one object, at times behind a bar), `demo` (one or two, some events), `rich`, and `cycles`.

`draw_scene(world, seed, index)` is a pure function, so that clips can be drawn anywhere in any order. All but `rich`
go through all combinations of colour, shape and direction in seeded blocks: every combination is equally often.
"""

from collections.abc import Callable

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.synthetic import palette
from data_pipeline.synthetic.cycles import CYCLES, draw_cycles
from data_pipeline.synthetic.motion import simulate
from data_pipeline.synthetic.placing import apart, background, inside, moving, resting
from data_pipeline.synthetic.rich import draw_rich
from data_pipeline.synthetic.scene import Body, Camera, Occluder, Scene

Size = tuple[int, int]  # (width, height)


def draw_scene(world: str, seed: int, index: int, size: Size | None = None, frames: int | None = None) -> Scene:
    """Clip `index` of a world. `size` (width, height) and `frames` override what the world would choose.

    Raises `UserError` for an unknown world or a size below 24 pixels.
    """
    if world not in WORLDS:
        raise UserError(f"unknown world {world!r}: choose one of {', '.join(WORLDS)}")
    if size is not None and min(size) < 24:
        raise UserError(f"a synthetic clip of {size[0]}x{size[1]} is too small: each side needs at least 24 pixels")
    if frames is not None and frames < 1:
        raise UserError(f"a clip needs at least 1 frame, got {frames}")
    return WORLDS[world](_generator(world, seed, index, 0), seed, index, size, frames)


def _generator(world: str, seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([list(WORLDS).index(world), seed, index, stream])


def _combination(
    world: str, seed: int, index: int, colours: tuple, shapes: tuple, directions: tuple = tuple(palette.DIRECTIONS)
) -> tuple[str, str, str]:
    """(colour, shape, direction) of clip `index`: a seeded order of all of them for each block of clips."""
    count = len(colours) * len(shapes) * len(directions)
    number = int(_generator(world, seed, index // count, 1).permutation(count)[index % count])
    rest, direction = divmod(number, len(directions))
    return colours[rest // len(shapes)], shapes[rest % len(shapes)], directions[direction]


def _quickstart(rng: np.random.Generator, seed: int, index: int, size: Size | None, frames: int | None) -> Scene:
    colour, shape, direction = _combination(
        "quickstart", seed, index, palette.QUICKSTART_COLOURS, palette.QUICKSTART_SHAPES
    )
    choices = (((32, 32), 9), ((40, 24), 9), ((24, 40), 9), ((32, 32), 1))
    drawn_size, drawn_frames = choices[int(rng.choice(4, p=(0.6, 0.15, 0.15, 0.1)))]
    width, height = size or drawn_size
    num_frames, fps = frames or drawn_frames, 8.0
    ground = background(rng, str(rng.choice(["plain", "gradient"])), (14, 40), 8.0)
    size_px = float(rng.uniform(10, 12))
    bounds, occluder = (float(width), float(height)), None
    if num_frames == 1:
        body = resting(rng, shape, colour, size_px, bounds, 1)
    elif rng.random() < 0.15 and _has_room(direction, bounds, size_px):
        body = moving(rng, shape, colour, size_px, direction, bounds, fps, num_frames, (1.0, 1.0))
        occluder = _bar_across(rng, direction, bounds, size_px)
    else:
        body = moving(rng, shape, colour, size_px, direction, bounds, fps, num_frames, (0.6, 1.0), 9.5)
    return Scene("quickstart", height, width, num_frames, fps, (body,), ground, Camera.static(num_frames), occluder)


def _demo(rng: np.random.Generator, seed: int, index: int, size: Size | None, frames: int | None) -> Scene:
    colour, shape, direction = _combination("demo", seed, index, palette.DEMO_COLOURS, palette.DEMO_SHAPES)
    choices = (((64, 64), 17), ((80, 48), 17), ((48, 80), 17), ((64, 64), 1))
    drawn_size, drawn_frames = choices[int(rng.choice(4, p=(0.6, 0.15, 0.15, 0.1)))]
    width, height = size or drawn_size
    num_frames, fps, bounds = frames or drawn_frames, 12.0, (float(width), float(height))
    kind = str(rng.choice(["plain", "gradient", "stripes", "checker", "clouds"], p=(0.4, 0.3, 0.1, 0.1, 0.1)))
    ground = background(rng, kind, (14, 50), {"plain": 0.0, "gradient": 12.0}.get(kind, 8.0))
    event = str(rng.choice(["second", "bounce", "occluder", "none"], p=(0.3, 0.15, 0.1, 0.45)))
    size_px = float(rng.uniform(14, 17) if event in ("second", "occluder") else rng.uniform(18, 22))
    occluder = None
    if num_frames == 1:
        bodies = [resting(rng, shape, colour, size_px, bounds, 1)]
    elif event == "bounce":
        bodies = [_bouncing(rng, shape, colour, size_px, direction, bounds, fps, num_frames)]
    else:
        share = (1.0, 1.0) if event == "occluder" else (0.6, 1.0)
        bodies = [moving(rng, shape, colour, size_px, direction, bounds, fps, num_frames, share)]
    if event == "second":
        bodies = _with_second(rng, bodies, bounds, fps, num_frames)
    elif event == "occluder" and num_frames > 1:
        occluder = _bar_across(rng, direction, bounds, size_px)
    physics = bodies[0].motion
    camera = Camera.static(num_frames)
    return Scene("demo", height, width, num_frames, fps, tuple(bodies), ground, camera, occluder, physics)


def _with_second(rng: np.random.Generator, bodies: list[Body], bounds, fps: float, num_frames: int) -> list[Body]:
    """Adds a body of another colour that never touches the first, or none where there is no room."""
    colour = str(rng.choice([c for c in palette.DEMO_COLOURS if c != bodies[0].colour]))
    for _ in range(40):
        shape, size_px = str(rng.choice(palette.DEMO_SHAPES)), float(rng.uniform(14, 17))
        if num_frames == 1:
            second = resting(rng, shape, colour, size_px, bounds, 1)
        else:
            direction = str(rng.choice(list(palette.DIRECTIONS)))
            second = moving(rng, shape, colour, size_px, direction, bounds, fps, num_frames, (0.5, 0.9))
        if apart([*bodies, second]):
            return [*bodies, second]
    return bodies


def _bouncing(
    rng, shape: str, colour: str, size_px: float, direction: str, bounds, fps: float, num_frames: int
) -> Body:
    """A body that meets the wall after 45 to 65% of the clip and comes back."""
    unit = np.array(palette.DIRECTIONS[direction])
    low, high = inside(shape, size_px, bounds)
    seconds = (num_frames - 1) / fps
    wall = np.where(unit > 0, high, low)
    room = float(np.abs(unit) @ (high - low))
    to_wall = room * rng.uniform(0.6, 0.95)
    start = np.where(unit != 0, wall - unit * to_wall, rng.uniform(low, high))
    speed = to_wall / (rng.uniform(0.45, 0.65) * seconds)
    margins = np.array([low[0], bounds[0] - high[0], low[1], bounds[1] - high[1]])
    track = simulate(start[None], (unit * speed)[None], margins[None], bounds, fps, num_frames)[:, 0]
    return Body(shape, colour, size_px, "bounce", direction, float(speed), track)


def _has_room(direction: str, bounds: tuple[float, float], size_px: float) -> bool:
    """Whether a bar of 5 pixels fits between a body's first place and its last."""
    return bounds[0 if direction in ("left", "right") else 1] - 2.3 * size_px >= 5.0


def _bar_across(rng: np.random.Generator, direction: str, bounds: tuple[float, float], size_px: float) -> Occluder:
    """A bar near the middle, across the motion of a body of `size_px` that stands clear of it at both ends."""
    axis = 0 if direction in ("left", "right") else 1
    free = bounds[axis] - 2.3 * size_px
    thickness = max(min(rng.uniform(0.3, 0.5) * size_px, 0.45 * free), 2.5)
    middle = bounds[axis] / 2 + rng.uniform(-1, 1) * max(free / 2 - thickness, 0.0)
    low, high = middle - thickness, middle + thickness
    box = (low, -9.0, high, bounds[1] + 9.0) if axis == 0 else (-9.0, low, bounds[0] + 9.0, high)
    return Occluder(tuple(float(edge) for edge in box), int(rng.integers(105, 150)))


def _rich(rng: np.random.Generator, seed: int, index: int, size: Size | None, frames: int | None) -> Scene:
    return draw_rich(rng, size, frames)


def _cycles(rng: np.random.Generator, seed: int, index: int, size: Size | None, frames: int | None) -> Scene:
    combination = _combination(
        "cycles", seed, index, palette.QUICKSTART_COLOURS, palette.QUICKSTART_SHAPES, tuple(CYCLES)
    )
    return draw_cycles(rng, combination, size, frames)


WORLDS: dict[str, Callable[[np.random.Generator, int, int, Size | None, int | None], Scene]] = {
    "quickstart": _quickstart,
    "demo": _demo,
    "rich": _rich,
    "cycles": _cycles,
}
