"""The rich world: one to three bodies, all shapes and colours, physics, occluders, textures and a moving camera."""

import numpy as np

from data_pipeline.synthetic import palette
from data_pipeline.synthetic.motion import simulate
from data_pipeline.synthetic.placing import apart, background, inside, moving, reach, resting
from data_pipeline.synthetic.scene import Body, Camera, Occluder, Scene

_SIDES = (32, 48, 64, 80, 96, 112, 128)
_FRAMES = (1, 5, 9, 17, 25, 33, 49, 65)
_RATES = (8.0, 12.0, 16.0, 24.0, 30.0)


def draw_rich(rng: np.random.Generator, size: tuple[int, int] | None, frames: int | None) -> Scene:
    """One scene; `size` (width, height) and `frames` override the draw."""
    width, height = size or _size(rng)
    num_frames = frames or int(rng.choice(_FRAMES, p=(0.12, 0.08, 0.15, 0.2, 0.15, 0.15, 0.1, 0.05)))
    fps, bounds = float(rng.choice(_RATES)), (float(width), float(height))
    kind = str(rng.choice(["plain", "gradient", "stripes", "checker", "clouds"]))
    ground = background(rng, kind, (15, 100), float(rng.uniform(8, 22)), 14.0)
    physics = "rest" if num_frames == 1 else str(rng.choice(["straight", "bounce", "fall", "collide"]))
    bodies = _bodies(rng, physics, bounds, fps, num_frames)
    camera = _camera(rng, bounds, num_frames) if physics != "collide" else Camera.static(num_frames)
    occluder = _occluder(rng, bounds) if rng.random() < 0.2 else None
    return Scene("rich", height, width, num_frames, fps, tuple(bodies), ground, camera, occluder, physics)


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height): square, landscape and portrait in equal shares, at most 2.5 times as long as wide."""
    width, height = (int(side) for side in rng.choice(_SIDES, 2))
    long, short = max(width, height), max(min(width, height), 2 * max(width, height) // 5 // 8 * 8)
    return ((long, long), (long, short), (short, long))[int(rng.integers(3))]


def _look(rng: np.random.Generator, bounds: tuple[float, float], taken: set[str]) -> tuple[str, str, float]:
    colour = str(rng.choice([c for c in palette.COLOURS if c not in taken]))
    taken.add(colour)
    return str(rng.choice(palette.SHAPES)), colour, float(min(bounds) * rng.uniform(0.16, 0.36))


def _bodies(
    rng: np.random.Generator, physics: str, bounds: tuple[float, float], fps: float, num_frames: int
) -> list[Body]:
    count = 2 if physics == "collide" else int(rng.integers(1, 4))
    if physics == "collide":
        return _colliding(rng, bounds, fps, num_frames)
    bodies: list[Body] = []
    taken: set[str] = set()
    for _ in range(12):
        shape, colour, size_px = _look(rng, bounds, taken)
        body = _body(rng, physics, shape, colour, size_px, bounds, fps, num_frames)
        if apart([*bodies, body]):
            bodies.append(body)
        else:
            taken.discard(colour)
        if len(bodies) == count:
            break
    return bodies


def _body(rng, physics: str, shape: str, colour: str, size_px: float, bounds, fps: float, num_frames: int) -> Body:
    if physics == "rest" or rng.random() < 0.15:
        return resting(rng, shape, colour, size_px, bounds, num_frames)
    directions = [*palette.DIRECTIONS, *palette.DIAGONALS]
    direction = "down" if physics == "fall" else str(rng.choice(directions))
    if physics == "straight":
        return moving(rng, shape, colour, size_px, direction, bounds, fps, num_frames, (0.3, 1.0))
    seconds = (num_frames - 1) / fps
    low, high = inside(shape, size_px, bounds)
    start = rng.uniform(low, np.maximum(high, low))
    if physics == "fall":
        start[1] = low[1] + 0.25 * rng.random() * max(high[1] - low[1], 0)
        fall_s = seconds * rng.uniform(0.35, 0.55)  # so that the ground is hit well before the end
        gravity, speed = 2 * max(high[1] - start[1], 1) / fall_s**2, 0.0
    else:
        gravity, speed = 0.0, float(max(bounds) * rng.uniform(0.9, 1.4) / seconds)
    velocity = speed * np.array({**palette.DIRECTIONS, **palette.DIAGONALS}[direction])
    extent = reach(shape, size_px)[None]
    restitution = 0.75 if physics == "fall" else 1.0
    track = simulate(start[None], velocity[None], extent, bounds, fps, num_frames, gravity, restitution)[:, 0]
    return Body(shape, colour, size_px, physics, direction, speed, track)


def _colliding(rng: np.random.Generator, bounds: tuple[float, float], fps: float, num_frames: int) -> list[Body]:
    """Two bodies that meet head on along the longer side in the first half of the clip."""
    taken: set[str] = set()
    looks = [_look(rng, bounds, taken) for _ in range(2)]
    extents = np.stack([reach(shape, size_px) for shape, _, size_px in looks])
    axis = int(bounds[1] > bounds[0])
    across = bounds[1 - axis] / 2 + rng.uniform(-0.1, 0.1) * bounds[1 - axis]
    positions = np.full((2, 2), across)
    positions[:, axis] = extents[0].max(), bounds[axis] - extents[1].max()
    gap = positions[1, axis] - positions[0, axis] - extents.max(1).sum()
    speeds = rng.uniform(0.6, 1.4, 2)
    speeds *= max(gap, 2.0) / (speeds.sum() * 0.45 * (num_frames - 1) / fps)
    velocities = np.zeros((2, 2))
    velocities[:, axis] = speeds * (1, -1)
    tracks = simulate(positions, velocities, extents, bounds, fps, num_frames, collide=True)
    directions = (("right", "left"), ("down", "up"))[axis]
    return [Body(*looks[i], "collide", directions[i], float(speeds[i]), tracks[:, i]) for i in range(2)]


def _camera(rng: np.random.Generator, bounds: tuple[float, float], num_frames: int) -> Camera:
    kind = str(rng.choice(["static", "pan", "zoom", "orbit"], p=(0.55, 0.15, 0.15, 0.15)))
    if kind == "static" or num_frames == 1:
        return Camera.static(num_frames)
    progress = np.linspace(-0.5, 0.5, num_frames, dtype=np.float32)
    offset, zoom, angle = np.zeros((num_frames, 2), np.float32), np.ones(num_frames, np.float32), 0 * progress
    if kind == "pan":
        axis, sign = int(rng.integers(2)), int(rng.choice([-1, 1]))
        offset[:, axis] = sign * progress * np.float32(bounds[axis] * rng.uniform(0.3, 0.6))
        words = f"The camera pans {(('to the left', 'to the right'), ('up', 'down'))[axis][(sign + 1) // 2]}."
    elif kind == "zoom":
        sign = int(rng.choice([-1, 1]))
        zoom = np.exp(sign * progress * np.float32(rng.uniform(0.4, 0.8))).astype(np.float32)
        words = f"The camera zooms {'in' if sign > 0 else 'out'}."
    else:
        sign = int(rng.choice([-1, 1]))
        angle = (sign * progress * np.float32(rng.uniform(0.5, 1.2))).astype(np.float32)
        words = f"The camera orbits {'clockwise' if sign > 0 else 'anticlockwise'}."
    return Camera(kind, offset, zoom, angle.astype(np.float32), words)


def _occluder(rng: np.random.Generator, bounds: tuple[float, float]) -> Occluder:
    axis = int(rng.integers(2))
    middle, thickness = bounds[axis] * rng.uniform(0.35, 0.65), bounds[axis] * rng.uniform(0.05, 0.12)
    low, high = middle - thickness, middle + thickness
    box = (low, -99.0, high, bounds[1] + 99.0) if axis == 0 else (-99.0, low, bounds[0] + 99.0, high)
    return Occluder(tuple(float(edge) for edge in box), int(rng.integers(110, 160)))
