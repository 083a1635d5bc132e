"""How alike two clips are where they overlap best: a copy of which an end is missing, or faded, is still one.

A track is a row of small pictures at one rate. Each is brought to one brightness and contrast, so that a fade changes
little, and the tracks are compared at every shift that leaves enough overlap, as whole clips are (`signature.py`): half
by the mean picture, half by what moves in it.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from data_pipeline.curation.borders import Crop
from data_pipeline.curation.observe import Observation
from data_pipeline.curation.signature import grid

TRACK_RATE = 4.0
"""pictures a second"""
TRACK_HEIGHT, TRACK_WIDTH = 6, 8
CONTRAST, LEAST_CONTRAST = 40.0, 4.0
STILL_LEVELS = 0.5
"""grey levels of motion, at that contrast, that count as much as none: people before one wall differ by two to five"""
CACHED_TRACKS = 2048  # of 15 kB for 20 s: a clip of a crowded place is compared with many others


def track(seen: Observation, start: int, num_frames: int, crop: Crop) -> UInt8[np.ndarray, "n y x"]:
    """The pictures of a clip, from its first frame on."""
    times = start + np.floor(np.arange(0, num_frames, seen.fps / TRACK_RATE)).astype(int)  # slower films repeat some
    grids = (grid(seen.thumbs[time], seen.height, seen.width, crop) for time in times)
    small = [cv2.resize(g, (TRACK_WIDTH, TRACK_HEIGHT), interpolation=cv2.INTER_AREA) for g in grids]
    return np.clip(np.stack(small).round(), 0, 255).astype(np.uint8)


@lru_cache(CACHED_TRACKS)
def normalised(track: bytes) -> Float32[np.ndarray, "n E"]:
    """Every picture with mean 0 and one contrast; one that is nearly flat stays so."""
    flat = np.frombuffer(track, np.uint8).reshape(-1, TRACK_HEIGHT * TRACK_WIDTH).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat * (CONTRAST / np.maximum(flat.std(axis=1, keepdims=True), LEAST_CONTRAST))


def aligned_similarities(
    one: Float32[np.ndarray, "n E"], others: Sequence[Float32[np.ndarray, "_ E"]], least_share: float, least: int
) -> Float64[np.ndarray, " k"]:
    """For each of `others` the largest cosine over all shifts at which `least_share` of the shorter track, and `least`
    pictures, overlap; -1 if there is none.

    All shifts of all pairs at once: sums over an overlap are differences of running sums (which cancel, hence the
    double precision), and the sums of products are a correlation, by Fourier transform.
    """
    lengths = np.array([len(other) for other in others])[:, None]
    length, longest = len(one), int(lengths.max())
    a_1nE = one[None].astype(np.float64)
    b_kmE = np.zeros((len(others), longest, one.shape[1]))
    for padded, other in zip(b_kmE, others, strict=True):
        padded[: len(other)] = other
    overlap = np.maximum(least, np.rint(least_share * np.minimum(length, lengths)).astype(int))
    shifts = np.arange((overlap - lengths).min(), (length - overlap).max() + 1)
    is_allowed = (shifts >= overlap - lengths) & (shifts <= length - overlap)
    starts = np.maximum(shifts, 0)[None]
    ends = np.maximum(starts, np.minimum(length, shifts + lengths))
    num = np.maximum(ends - starts, 1)
    sides = ((a_1nE, starts, ends), (b_kmE, starts - shifts, ends - shifts))
    first, second = (_sums(values, *span) for values, *span in sides)
    squares = [_sums((values**2).sum(axis=2, keepdims=True), *span)[..., 0] for values, *span in sides]
    size = length + longest
    spectrum = (np.fft.rfft(a_1nE, size, axis=1) * np.fft.rfft(b_kmE, size, axis=1).conj()).sum(axis=2)
    products = np.fft.irfft(spectrum, size, axis=1)[:, shifts]
    area = num * one.shape[1]
    crossed, (norm_a, norm_b) = (first * second).sum(axis=2), ((sums**2).sum(axis=2) for sums in (first, second))
    picture = crossed / np.maximum(np.sqrt(norm_a * norm_b), 1e-6 * num**2)
    together, moving_a, moving_b = (
        (total - of_means / num) / area + STILL_LEVELS**2
        for total, of_means in zip((products, *squares), (crossed, norm_a, norm_b), strict=True)
    )
    similarity = 0.5 * picture + 0.5 * together / np.sqrt(moving_a * moving_b)
    return np.where(is_allowed, similarity, -1.0).max(axis=1, initial=-1.0)


def _sums(
    values: Float64[np.ndarray, "_ n E"], starts: Int64[np.ndarray, "_ s"], ends: Int64[np.ndarray, "k s"]
) -> Float64[np.ndarray, "k s E"]:
    """Over `[start, end)` of the second axis; what there is one of is for all."""
    running = np.cumsum(np.pad(values, ((0, 0), (1, 0), (0, 0))), axis=1)
    rows = np.arange(len(values))[:, None]
    return running[rows, ends] - running[rows, starts]
