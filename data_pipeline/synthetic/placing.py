"""Random bodies, backgrounds and tracks that stay inside the frame: the parts that every world draws from."""

import numpy as np
from jaxtyping import Float

from data_pipeline.synthetic.motion import straight
from data_pipeline.synthetic.palette import DIAGONALS, DIRECTIONS
from data_pipeline.synthetic.scene import Background, Body
from data_pipeline.synthetic.shapes import EXTENTS

MARGIN_PX = 0.5


def reach(shape: str, size_px: float) -> Float[np.ndarray, " 4"]:
    """Pixels from the centroid to the left, right, upper and lower edge."""
    return np.array(EXTENTS[shape]) * size_px


def inside(shape: str, size_px: float, bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest (x, y) of a centroid whose body stays in the frame."""
    left, right, up, down = reach(shape, size_px) + MARGIN_PX
    return np.array([left, up]), np.array([bounds[0] - right, bounds[1] - down])


def resting(rng: np.random.Generator, shape: str, colour: str, size_px: float, bounds, num_frames: int) -> Body:
    """A body that stays at a random place."""
    low, high = inside(shape, size_px, bounds)
    track = np.repeat(rng.uniform(low, np.maximum(high, low))[None], num_frames, axis=0)
    return Body(shape, colour, size_px, "rest", None, 0.0, track)


def moving(
    rng: np.random.Generator,
    shape: str,
    colour: str,
    size_px: float,
    direction: str,
    bounds: tuple[float, float],
    fps: float,
    num_frames: int,
    share: tuple[float, float] = (0.5, 1.0),
    shortest_px: float = 0.0,
) -> Body:
    """A body that crosses a random `share` of the room that its direction has, at least `shortest_px`."""
    unit = np.array({**DIRECTIONS, **DIAGONALS}[direction])
    low, high = inside(shape, size_px, bounds)
    room = np.maximum(high - low, 0)
    longest = min(room[axis] / abs(unit[axis]) for axis in (0, 1) if unit[axis])
    length = min(max(longest * rng.uniform(*share), shortest_px), longest)
    shift = unit * length
    start = rng.uniform(low - np.minimum(shift, 0), np.maximum(high - np.maximum(shift, 0), low - np.minimum(shift, 0)))
    speed = length * fps / max(num_frames - 1, 1)
    return Body(
        shape, colour, size_px, "straight", direction, float(speed), straight(start, unit * speed, fps, num_frames)
    )


def apart(bodies: list[Body]) -> bool:
    """Whether no two bodies ever touch."""
    for number, first in enumerate(bodies):
        for second in bodies[number + 1 :]:
            gap = np.hypot(*(first.track - second.track).T)
            if gap.min() < 0.62 * (first.size_px + second.size_px):
                return False
    return True


def background(
    rng: np.random.Generator, kind: str, grey: tuple[float, float], amplitude: float, tint: float = 6.0
) -> Background:
    """A texture of the given kind around a random grey with a slight tint."""
    base = np.clip(rng.uniform(*grey) + rng.uniform(-tint, tint, 3), 0, 255)
    counts = {"plain": 0, "gradient": 1, "stripes": 1, "checker": 2, "clouds": 5}
    lengths = {"gradient": (120, 300), "stripes": (8, 24), "checker": (14, 32), "clouds": (20, 90)}
    angle = rng.uniform(0, 2 * np.pi, counts[kind])
    if kind == "checker":
        angle = angle[0] + np.array([0, np.pi / 2])
    rate = 2 * np.pi / rng.uniform(*lengths.get(kind, (1, 2)), counts[kind])
    frequencies = (rate[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)).astype(np.float32)
    phases = rng.uniform(0, 2 * np.pi, counts[kind]).astype(np.float32)
    return Background(kind, tuple(float(channel) for channel in base), amplitude, frequencies, phases)
