"""What a clip looks like, twice: perceptual hashes to find candidates for duplicates, and a vector to compare them by.

The vector has two halves. One is the mean picture over time; the other is what moves in it, the deviations from that
mean at eight times. Clips of one camera share the first half and not the second, so that a robot's thousand episodes at
one table are no duplicates of each other. Noise does not count as motion: below about a level it fades into a component
that stands for "nothing moves".
"""

from collections.abc import Sequence

import cv2
import imagehash
import numpy as np
from jaxtyping import Float16
from PIL import Image

from data_pipeline.curation.borders import Crop
from data_pipeline.curation.observe import Observation, Sample

NUM_TIMES, GRID_HEIGHT, GRID_WIDTH = 8, 8, 12
NUM_HASHES = 8
STILL_LEVELS = 1.0


def perceptual_hashes(samples: Sequence[Sample], height: int, width: int, crop: Crop) -> tuple[int, ...]:
    """64-bit DCT hashes (Zauner 2010) of up to eight evenly spaced pictures, without their borders."""
    if not samples:
        return ()
    places = np.unique(np.linspace(0, len(samples) - 1, NUM_HASHES).round().astype(int))
    pictures = (cropped(samples[place].picture, height, width, crop) for place in places)
    return tuple(int(str(imagehash.phash(Image.fromarray(picture))), 16) for picture in pictures)


def signature(seen: Observation, start: int, num_frames: int, crop: Crop) -> Float16[np.ndarray, " E"]:
    """[E], of unit length. E = 96 (mean picture) + 8 x 96 (what moves) + 1 (nothing moves)."""
    times = start + np.linspace(0, num_frames - 1, NUM_TIMES + 2)[1:-1].round().astype(int)
    grids = np.stack([grid(seen.thumbs[time], seen.height, seen.width, crop) for time in times])
    mean = grids.mean(axis=0)
    moving = grids - mean
    energy = float(np.sqrt((moving**2).mean()))
    scale = np.sqrt(0.5) / np.hypot(energy, STILL_LEVELS)
    motion = moving.ravel() / np.sqrt(moving.size) * scale
    picture = (mean - mean.mean()).ravel()
    picture *= np.sqrt(0.5) / max(float(np.linalg.norm(picture)), 1e-6)
    return np.concatenate([picture, motion, [STILL_LEVELS * scale]]).astype(np.float16)


def cropped(picture: np.ndarray, height: int, width: int, crop: Crop) -> np.ndarray:
    """The part of a scaled picture that `crop` is of the full frame."""
    y, x = picture.shape[0] / height, picture.shape[1] / width
    top, left = round(crop[0] * y), round(crop[1] * x)
    return picture[
        top : max(top + 1, round((crop[0] + crop[2]) * y)), left : max(left + 1, round((crop[1] + crop[3]) * x))
    ]


def grid(thumb: np.ndarray, height: int, width: int, crop: Crop) -> np.ndarray:
    """[8, 12] luma of the cropped thumbnail; fractions of its pixels count."""
    grey = cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    y, x = grey.shape[0] / height, grey.shape[1] / width
    # Averages over areas: an integral image, read between its points.
    total = cv2.integral(grey)
    rows = (crop[0] + np.linspace(0, crop[2], GRID_HEIGHT + 1)) * y
    columns = (crop[1] + np.linspace(0, crop[3], GRID_WIDTH + 1)) * x
    map_x, map_y = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    read = cv2.remap(total.astype(np.float32), map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])
    return (np.diff(np.diff(read, axis=0), axis=1) / max(area, 1e-6)).astype(np.float32)
