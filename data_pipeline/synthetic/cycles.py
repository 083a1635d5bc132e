"""The world of cycles: one object that goes round or to and fro at a steady speed, over and over.

Straight motions never come back, so that no loop of them is without a jump. Here a clip holds more than one period, of
which there are two: 13 and 17 frames, the lengths of loops that an autoencoder codes by 4 frames a latent can have.
"""

import numpy as np
from jaxtyping import Float

from data_pipeline.synthetic.placing import background, inside, resting
from data_pipeline.synthetic.scene import Body, Camera, Scene

CYCLES = {
    "clockwise": "goes round clockwise",
    "anticlockwise": "goes round anticlockwise",
    "sideways": "swings left and right",
    "upright": "swings up and down",
}
"""What a body does, and how captions say it."""
PERIODS = (13, 17)
NUM_FRAMES = 21


def draw_cycles(
    rng: np.random.Generator,
    combination: tuple[str, str, str],
    size: tuple[int, int] | None,
    frames: int | None,
) -> Scene:
    """A scene of (colour, shape, cycle); `size` (width, height) and `frames` override what the world would choose."""
    colour, shape, cycle = combination
    width, height = size or (32, 32)
    num_frames, fps = frames or (1 if rng.random() < 0.1 else NUM_FRAMES), 8.0
    ground = background(rng, str(rng.choice(["plain", "gradient"])), (14, 40), 8.0)
    size_px, bounds = float(rng.uniform(10, 12)), (float(width), float(height))
    if num_frames == 1:
        body = resting(rng, shape, colour, size_px, bounds, 1)
    else:
        body = _cycling(rng, shape, colour, size_px, cycle, bounds, fps, num_frames)
    return Scene("cycles", height, width, num_frames, fps, (body,), ground, Camera.static(num_frames))


def _cycling(
    rng: np.random.Generator,
    shape: str,
    colour: str,
    size_px: float,
    cycle: str,
    bounds: tuple[float, float],
    fps: float,
    num_frames: int,
) -> Body:
    """A body that starts anywhere in its cycle, which takes 0.7 to all of the room."""
    low, high = inside(shape, size_px, bounds)
    room = np.maximum(high - low, 0)
    share, period = rng.uniform(0.7, 1.0), int(rng.choice(PERIODS))
    rounds = rng.uniform() + np.arange(num_frames) / period
    if cycle in ("clockwise", "anticlockwise"):
        half = np.full(2, share * room.min() / 2)
        length = 2 * np.pi * half[0]
        offset = half * _round(rounds if cycle == "clockwise" else -rounds)
    else:
        along = np.array([1.0, 0.0] if cycle == "sideways" else [0.0, 1.0])
        half = share * along * room / 2
        length = 4 * half.max()
        offset = half * (4 * np.abs(rounds % 1 - 0.5) - 1)[:, None]
    centre = rng.uniform(low + half, np.maximum(high - half, low + half))
    return Body(shape, colour, size_px, cycle, None, float(length * fps / period), centre + offset)


def _round(rounds: Float[np.ndarray, " T"]) -> Float[np.ndarray, "T 2"]:
    """Points of the unit circle, clockwise on a screen whose y grows downwards."""
    return np.stack([np.cos(2 * np.pi * rounds), np.sin(2 * np.pi * rounds)], -1)
