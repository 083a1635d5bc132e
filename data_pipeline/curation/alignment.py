"""How alike two clips are where they overlap best: a copy of which an end is missing, or faded, is still one.

A track is a row of small pictures at one rate. Each is brought to one brightness and contrast, so that a fade changes
little, and the tracks are compared at every shift that leaves enough overlap, as whole clips are (`signature.py`): half
by the mean picture, half by what moves in it.
"""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.curation.borders import Crop
from data_pipeline.curation.observe import Observation
from data_pipeline.curation.signature import grid

TRACK_RATE = 4.0
"""pictures a second"""
TRACK_HEIGHT, TRACK_WIDTH = 6, 8
CONTRAST, LEAST_CONTRAST = 40.0, 4.0
STILL_LEVELS = 0.5
"""grey levels of motion, at that contrast, that count as much as none: people before one wall differ by two to five"""


def track(seen: Observation, start: int, num_frames: int, crop: Crop) -> UInt8[np.ndarray, "n y x"]:
    """The pictures of a clip, from its first frame on."""
    times = start + np.floor(np.arange(0, num_frames, seen.fps / TRACK_RATE)).astype(int)  # slower films repeat some
    grids = (grid(seen.thumbs[time], seen.height, seen.width, crop) for time in times)
    small = [cv2.resize(g, (TRACK_WIDTH, TRACK_HEIGHT), interpolation=cv2.INTER_AREA) for g in grids]
    return np.clip(np.stack(small).round(), 0, 255).astype(np.uint8)


def normalised(track: bytes) -> Float32[np.ndarray, "n E"]:
    """Every picture with mean 0 and one contrast; one that is nearly flat stays so."""
    flat = np.frombuffer(track, np.uint8).reshape(-1, TRACK_HEIGHT * TRACK_WIDTH).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat * (CONTRAST / np.maximum(flat.std(axis=1, keepdims=True), LEAST_CONTRAST))


def aligned_similarity(
    a: Float32[np.ndarray, "n E"], b: Float32[np.ndarray, "m E"], least_share: float, least: int
) -> float:
    """The largest cosine over all shifts at which `least_share` of the shorter track, and `least` pictures, overlap; -1
    if there is none."""
    overlap = max(least, round(least_share * min(len(a), len(b))))
    best = -1.0
    for shift in range(overlap - len(b), len(a) - overlap + 1):
        first, second = a[max(shift, 0) : shift + len(b)], b[max(-shift, 0) : len(a) - shift]
        best = max(best, _similarity(first, second))
    return best


def _similarity(a: Float32[np.ndarray, "n E"], b: Float32[np.ndarray, "n E"]) -> float:
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    norms = np.linalg.norm(mean_a) * np.linalg.norm(mean_b)
    picture = float(mean_a @ mean_b) / max(float(norms), 1e-6)
    moving_a, moving_b = a - mean_a, b - mean_b
    together = float((moving_a * moving_b).mean()) + STILL_LEVELS**2
    energies = [float((moving**2).mean()) + STILL_LEVELS**2 for moving in (moving_a, moving_b)]
    return 0.5 * picture + 0.5 * together / float(np.sqrt(energies[0] * energies[1]))
