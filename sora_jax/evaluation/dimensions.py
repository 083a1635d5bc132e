"""Qualities of a video that need no prompt and no fetched network, named after VBench's dimensions (Huang et al. 2024).

`temporal_flickering` is VBench's own formula; the others stand in for networks that VBench fetches, and their numbers
are not VBench's: `motion_smoothness` takes second differences in place of an interpolating network, `dynamic_degree`
block matching in place of RAFT (with VBench's threshold), `sharpness` the blur effect of Crété et al. (2007) in place
of MUSIQ, `subject_consistency` the formula over features of the network that is given in place of DINO.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy.ndimage import uniform_filter, uniform_filter1d

from sora_jax.evaluation.features import FeatureNetwork
from sora_jax.evaluation.protocols import run_steps

Video = UInt8[np.ndarray, "T Y X 3"]
LEVELS = 255.0
BLOCK, REACH = 7, 3
"""Pixels a side of a matched block, and how far it is looked for in a frame."""
TOP_SHARE = 0.05
THRESHOLD, REFERENCE_SIDE = 6.0, 256
"""VBench: a video moves where its top 5% of flow exceed 6 pixels at a shorter side of 256."""
BLUR_WINDOW = 9
MARGIN = 0.5
"""A shift must match better by so many levels than none: flat ground does not move."""
PER_VIDEO = ("temporal_flickering", "motion_smoothness", "dynamic_degree", "sharpness", "subject_consistency")


@dataclass(frozen=True)
class Mean:
    """A mean over videos with its 95% interval by the normal law."""

    mean: float
    low: float
    high: float
    num: int


def dimensions(frames: Video, network: FeatureNetwork) -> dict[str, float]:
    """Each of `PER_VIDEO`, higher is better but for `dynamic_degree` (1: it moves); of an image its sharpness alone."""
    grey = frames.astype(np.float32).mean(-1)
    found = {"sharpness": float(np.mean([1 - blur(frame) for frame in grey]))}
    if len(frames) < 2:
        return found
    flow = top_flow(grey)
    return found | {
        "temporal_flickering": temporal_flickering(frames),
        "motion_smoothness": motion_smoothness(grey),
        "dynamic_degree": float(flow >= THRESHOLD * min(grey.shape[1:]) / REFERENCE_SIDE),
        "subject_consistency": consistency(frame_features(network, frames)),
    }


def temporal_flickering(frames: Video) -> float:
    """(255 - the mean absolute difference of neighbouring frames) / 255. It is meant for still scenes."""
    steps = np.abs(np.diff(frames.astype(np.int16), axis=0))
    return float((LEVELS - steps.mean()) / LEVELS)


def motion_smoothness(grey: Float32[np.ndarray, "T Y X"]) -> float:
    """1 - mean |x[t+1] - 2 x[t] + x[t-1]| / mean (|x[t+1] - x[t]| + |x[t] - x[t-1]|): 1 where every pixel changes
    steadily or not at all, 0 where every change is taken back."""
    steps = np.diff(grey, axis=0)
    turns, ways = np.abs(np.diff(steps, axis=0)).sum(), (np.abs(steps[1:]) + np.abs(steps[:-1])).sum()
    return float(1 - turns / ways) if ways > 0 else 1.0


def top_flow(grey: Float32[np.ndarray, "T Y X"]) -> float:
    """The mean over pairs of frames of the largest 5% of shifts, in pixels, by matching blocks."""
    found = []
    for before, after in itertools.pairwise(grey):
        lengths = np.sort(_shifts(before, after).ravel())[::-1]
        found.append(lengths[: max(1, int(TOP_SHARE * lengths.size))].mean())
    return float(np.mean(found))


def _shifts(before: Float32[np.ndarray, "Y X"], after: Float32[np.ndarray, "Y X"]) -> Float[np.ndarray, "Y X"]:
    """For each pixel, how far its block moved; 0 unless that matches better by `MARGIN`."""
    padded = np.pad(before, REACH, mode="edge")
    height, width = before.shape
    best = uniform_filter(np.abs(after - before), BLOCK) - MARGIN
    length = np.zeros(before.shape)
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            moved = padded[REACH - down : REACH - down + height, REACH - right : REACH - right + width]
            cost = uniform_filter(np.abs(after - moved), BLOCK)
            length = np.where(cost < best, np.hypot(down, right), length)
            best = np.minimum(cost, best)
    return length


def blur(grey: Float32[np.ndarray, "Y X"]) -> float:
    """The blur effect (Crété et al. 2007): how little of the differences between neighbours a blur of nine pixels takes
    away, 0 (sharp) to 1; the worse of the two directions."""
    found = []
    for axis in (0, 1):
        smooth = uniform_filter1d(grey, BLUR_WINDOW, axis)
        sharp, soft = (np.abs(np.diff(x, axis=axis)) for x in (grey, smooth))
        total = sharp.sum()
        lost = np.maximum(0, sharp - soft).sum()
        found.append((total - lost) / total if total > 0 else 1.0)
    return float(max(found))


def frame_features(network: FeatureNetwork, frames: Video) -> Float[np.ndarray, "T D"]:
    """Each frame's features, by a network of images."""
    clips = run_steps(network.protocol, frames)[:, None]
    return network(clips)[0][:, 0]


def consistency(features: Float[np.ndarray, "T D"]) -> float:
    """The mean over the frames after the first of their cosine to the first and to the one before, halved."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    to_first, to_last = unit[1:] @ unit[0], (unit[1:] * unit[:-1]).sum(1)
    return float(np.mean(np.maximum(to_first, 0) + np.maximum(to_last, 0)) / 2)


def mean_of(values: list[float]) -> Mean:
    """Of one dimension over videos."""
    mean = float(np.mean(values))
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    return Mean(mean, mean - half, mean + half, len(values))
