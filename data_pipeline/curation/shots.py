"""Where one shot ends and the next begins: PySceneDetect's cuts and fades, without flashes, and cross-fades.

PySceneDetect's adaptive detector finds hard cuts and its threshold detector fades through black. Two things are added,
both on thumbnails: a picture that comes back at once was interrupted by a flash, not cut; and a cross-fade is a run of
frames that are blends of its two ends (which neither camera motion nor a change of exposure is).
"""

import numpy as np
from jaxtyping import Float32

from data_pipeline.curation.config import ShotConfig
from data_pipeline.curation.observe import Observation

RETURNS = 0.4  # a flash's distance from before to after, as a share of the jump into it
MIN_CHANGE = 14.0  # mean difference of thumbnails, in levels, between the two ends of a cross-fade
MAX_RESIDUAL = 0.35  # what a blend of the ends may leave unexplained of a frame amid a cross-fade
MAX_DRIFT = 0.35  # how much of that may change in half the time just outside of the cross-fade
MAX_LIKENESS = 0.6  # correlation of the ends: beyond it, it is one scene whose light changes

Thumbs = Float32[np.ndarray, "T P"]


def split_shots(seen: Observation, cfg: ShotConfig) -> list[tuple[int, int]]:
    """[start, end) of every shot, in order; frames of cross-fades and black frames at the ends belong to none."""
    if not seen.num_frames:
        return []
    thumbs = seen.thumbs.reshape(seen.num_frames, -1).astype(np.float32)
    dissolves = find_dissolves(thumbs, seen.fps, cfg)
    inside = lambda cut: any(start < cut < end for start, end in dissolves)  # noqa: E731
    hard = [cut for cut in seen.cuts if not inside(cut) and not _is_flash(thumbs, cut, round(cfg.flash_s * seen.fps))]
    trim = round(cfg.trim_s * seen.fps)
    gaps = sorted([(cut - trim, cut + trim) for cut in hard] + dissolves)
    shots, begin = [], 0
    for start, end in [*gaps, (seen.num_frames, seen.num_frames)]:
        shot = _without_black(thumbs, begin, start, cfg.fade_luma)
        shots += [shot] if shot[0] < shot[1] else []
        begin = max(begin, end)
    return shots


def _is_flash(thumbs: Thumbs, cut: int, reach: int) -> bool:
    """Whether a frame shortly before `cut` and one shortly after it resemble each other far more than the two at it."""
    before = thumbs[max(0, cut - reach) : cut]
    after = thumbs[cut : cut + reach]
    jump = np.abs(thumbs[cut] - thumbs[cut - 1]).mean()
    # A real cut has neither: every frame of one side is as far from every frame of the other.
    nearest = min(np.abs(after - frame).mean(axis=1).min() for frame in before)
    return bool(nearest < RETURNS * jump)


def _without_black(thumbs: Thumbs, start: int, end: int, luma: float) -> tuple[int, int]:
    lit = np.flatnonzero(thumbs[start:end].mean(axis=1) >= luma) if start < end else np.zeros(0, int)
    return (start + int(lit[0]), start + int(lit[-1]) + 1) if len(lit) else (start, start)


def find_dissolves(thumbs: Thumbs, fps: float, cfg: ShotConfig) -> list[tuple[int, int]]:
    """[start, end) of cross-fades: the frames that show both shots, from the longest looked for to the shortest."""
    found: list[tuple[int, int]] = []
    for seconds in sorted(cfg.dissolve_s, reverse=True):
        length = max(4, round(seconds * fps / 4) * 4)
        change = _blend_change(thumbs, length)
        for start in np.argsort(-change, kind="stable"):
            if change[start] <= 0:
                break
            span = (int(start), int(start) + length)
            if all(span[1] + length // 2 <= first or last + length // 2 <= span[0] for first, last in found):
                found.append(span)
    return sorted(found)


def _blend_change(thumbs: Thumbs, length: int) -> Float32[np.ndarray, " t"]:
    """For each start of a window: how far its ends are apart (mean levels), 0 where it is no blend of them."""
    count = len(thumbs) - length
    if count <= 0:
        return np.zeros(0, np.float32)
    first, last = thumbs[:count], thumbs[length:]
    direction = last - first
    change = np.abs(direction).mean(axis=1)
    square = np.maximum((direction**2).sum(axis=1), 1e-6)
    ok = (change >= MIN_CHANGE) & (_correlation(first, last) <= MAX_LIKENESS)
    ok &= np.minimum(first.std(axis=1), last.std(axis=1)) > 8  # a flat picture is a fade's, not another shot's
    ok &= _drift(thumbs, length) <= MAX_DRIFT * change
    weights = []
    for quarter in (1, 2, 3):
        middle = thumbs[quarter * length // 4 :][:count] - first
        weight = (middle * direction).sum(axis=1) / square
        residual = np.sqrt(((middle - weight[:, None] * direction) ** 2).sum(axis=1) / square)
        ok &= (residual <= MAX_RESIDUAL) & (weight > 0.08) & (weight < 0.92)
        weights.append(weight)
    ok &= (weights[1] - weights[0] > 0.08) & (weights[2] - weights[1] > 0.08)
    return np.where(ok, change, 0).astype(np.float32)


def _drift(thumbs: Thumbs, length: int) -> Float32[np.ndarray, " t"]:
    """For each start of a window: how much changes in half its length before it and behind it, the mean of the two.

    A pan looks like a blend as long as it is slow; but it does not begin with the window and end with it.
    """
    half, count = length // 2, len(thumbs) - length
    step = np.abs(thumbs[half:] - thumbs[:-half]).mean(axis=1)  # from each frame to the one half a window later
    starts = np.arange(count)
    before = step[np.maximum(starts - half, 0)]
    behind = step[np.minimum(starts + length, len(step) - 1)]
    return (before + behind) / 2


def _correlation(a: Thumbs, b: Thumbs) -> Float32[np.ndarray, " t"]:
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return ((a * b).sum(axis=1) / np.maximum(scale, 1e-6)).astype(np.float32)
