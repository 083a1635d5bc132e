"""Where one shot ends and the next begins: PySceneDetect's cuts and fades, without flashes, and cross-fades.

PySceneDetect's adaptive detector finds hard cuts and its threshold detector fades through black. Two things are added,
both on thumbnails: a picture that comes back at once was interrupted by a flash, not cut; and a cross-fade is a run of
frames that are blends of its two ends (which neither camera motion nor a change of exposure is).
"""

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.curation.config import ShotConfig
from data_pipeline.curation.observe import Observation

RETURNS = 0.4  # a flash's distance from before to after, as a share of the jump into it
MIN_CHANGE = 14.0  # mean difference of thumbnails, in levels, between the two ends of a cross-fade
MAX_RESIDUAL = 0.35  # what a blend of the ends may leave unexplained of a frame amid a cross-fade
MAX_DRIFT = 0.35  # how much of that may change in half the time just outside of the cross-fade
MAX_LIKENESS = 0.6  # correlation of the ends: beyond it, it is one scene whose light changes
BLOCK = 2048  # frames whose thumbnails are floats at once: a film of hours has hundreds of thousands

Bytes = UInt8[np.ndarray, "T P"]
Thumbs = Float32[np.ndarray, "T P"]


def split_shots(seen: Observation, cfg: ShotConfig) -> list[tuple[int, int]]:
    """[start, end) of every shot, in order; frames of cross-fades and black frames at the ends belong to none."""
    if not seen.num_frames:
        return []
    thumbs = seen.thumbs.reshape(seen.num_frames, -1)
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


def _is_flash(thumbs: Bytes, cut: int, reach: int) -> bool:
    """Whether a frame at most `reach` before `cut` and one as near behind it resemble each other far more than the two
    at it. Nothing is a flash where `reach` is 0: a frame lasts longer than a flash may."""
    if not reach:
        return False
    near = thumbs[max(0, cut - reach) : cut + reach].astype(np.float32)
    before, after = np.split(near, [min(cut, reach)])
    jump = np.abs(after[0] - before[-1]).mean()
    # A real cut has neither: every frame of one side is as far from every frame of the other.
    nearest = min(np.abs(after - frame).mean(axis=1).min() for frame in before)
    return bool(nearest < RETURNS * jump)


def _without_black(thumbs: Bytes, start: int, end: int, luma: float) -> tuple[int, int]:
    lit = np.flatnonzero(thumbs[start:end].mean(axis=1) >= luma) if start < end else np.zeros(0, int)
    return (start + int(lit[0]), start + int(lit[-1]) + 1) if len(lit) else (start, start)


def find_dissolves(thumbs: Bytes, fps: float, cfg: ShotConfig) -> list[tuple[int, int]]:
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


def _blend_change(thumbs: Bytes, length: int) -> Float32[np.ndarray, " t"]:
    """For each start of a window: how far its ends are apart (mean levels), 0 where it is no blend of them."""
    count = len(thumbs) - length
    if count <= 0:
        return np.zeros(0, np.float32)
    drift = _drift(thumbs, length)
    return np.concatenate(
        [
            _change_of_block(thumbs[start : min(start + BLOCK, count) + length].astype(np.float32), length, some)
            for start, some in zip(range(0, count, BLOCK), np.split(drift, range(BLOCK, count, BLOCK)), strict=True)
        ]
    )


def _change_of_block(thumbs: Thumbs, length: int, drift: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    count = len(thumbs) - length
    first, last = thumbs[:count], thumbs[length:]
    direction = last - first
    change = np.abs(direction).mean(axis=1)
    square = np.maximum((direction**2).sum(axis=1), 1e-6)
    ok = (change >= MIN_CHANGE) & (_correlation(first, last) <= MAX_LIKENESS)
    ok &= np.minimum(first.std(axis=1), last.std(axis=1)) > 8  # a flat picture is a fade's, not another shot's
    ok &= drift <= MAX_DRIFT * change
    weights = []
    for quarter in (1, 2, 3):
        middle = thumbs[quarter * length // 4 :][:count] - first
        weight = (middle * direction).sum(axis=1) / square
        residual = np.sqrt(((middle - weight[:, None] * direction) ** 2).sum(axis=1) / square)
        ok &= (residual <= MAX_RESIDUAL) & (weight > 0.08) & (weight < 0.92)
        weights.append(weight)
    ok &= (weights[1] - weights[0] > 0.08) & (weights[2] - weights[1] > 0.08)
    return np.where(ok, change, 0).astype(np.float32)


def _drift(thumbs: Bytes, length: int) -> Float32[np.ndarray, " t"]:
    """For each start of a window: how much changes in half its length before it and behind it, the mean of the two.

    A pan looks like a blend as long as it is slow; but it does not begin with the window and end with it.
    """
    half, count = length // 2, len(thumbs) - length
    # from each frame to the one half a window later
    step = np.concatenate(
        [_steps(thumbs[start : start + BLOCK + half], half) for start in range(0, len(thumbs) - half, BLOCK)]
    )
    starts = np.arange(count)
    before = step[np.maximum(starts - half, 0)]
    behind = step[np.minimum(starts + length, len(step) - 1)]
    return (before + behind) / 2


def _steps(thumbs: Bytes, distance: int) -> Float32[np.ndarray, " t"]:
    """Mean change in levels from each frame to the one `distance` later."""
    floats = thumbs.astype(np.float32)
    return np.abs(floats[distance:] - floats[:-distance]).mean(axis=1)


def _correlation(a: Thumbs, b: Thumbs) -> Float32[np.ndarray, " t"]:
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return ((a * b).sum(axis=1) / np.maximum(scale, 1e-6)).astype(np.float32)
