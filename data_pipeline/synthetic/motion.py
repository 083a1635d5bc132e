"""Where bodies go: straight lines, walls, gravity and elastic collisions, in small time steps."""

import numpy as np
from jaxtyping import Float

SUBSTEPS = 16  # per frame: a body moves well below a pixel in one


def straight(
    start: Float[np.ndarray, " 2"], velocity: Float[np.ndarray, " 2"], fps: float, num_frames: int
) -> Float[np.ndarray, "T 2"]:
    """Positions at constant velocity (pixels per second)."""
    return start + velocity * (np.arange(num_frames) / fps)[:, None]


def simulate(
    positions: Float[np.ndarray, "n 2"],
    velocities: Float[np.ndarray, "n 2"],
    reach: Float[np.ndarray, "n 4"],
    bounds: tuple[float, float],
    fps: float,
    num_frames: int,
    gravity: float = 0.0,
    restitution: float = 1.0,
    collide: bool = False,
) -> Float[np.ndarray, "T n 2"]:
    """Positions a frame of bodies in a box of `bounds` = (width, height) with reflecting walls.

    `reach` is each body's extent (left, right, up, down) in pixels; `gravity` in pixels/s², `restitution` the share
    of speed kept at a wall. Collisions are elastic, of equal masses, between the circles around the bodies.
    """
    position, velocity = positions.astype(float).copy(), velocities.astype(float).copy()
    low = reach[:, [0, 2]]
    high = np.asarray(bounds) - reach[:, [1, 3]]
    radii = reach.max(1)
    dt = 1 / (fps * SUBSTEPS)
    tracks = [position.copy()]
    for _ in range(num_frames - 1):
        for _ in range(SUBSTEPS):
            velocity[:, 1] += gravity * dt
            position += velocity * dt
            out = ((position < low) & (velocity < 0)) | ((position > high) & (velocity > 0))
            velocity[out] *= -restitution
            position = np.clip(position, low, high)
            if collide:
                _collide(position, velocity, radii)
        tracks.append(position.copy())
    return np.stack(tracks)


def _collide(
    position: Float[np.ndarray, "n 2"], velocity: Float[np.ndarray, "n 2"], radii: Float[np.ndarray, " n"]
) -> None:
    """Exchanges the velocities along the line of centres of every touching pair that approaches, in place."""
    for first in range(len(position)):
        for second in range(first + 1, len(position)):
            apart = position[second] - position[first]
            distance = float(np.hypot(*apart))
            normal = apart / max(distance, 1e-9)
            closing = float((velocity[first] - velocity[second]) @ normal)
            if distance < radii[first] + radii[second] and closing > 0:
                velocity[first] -= closing * normal
                velocity[second] += closing * normal
