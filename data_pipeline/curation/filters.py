"""Limits on what was measured: each a pure function of a candidate; the first that is broken is the reason."""

import dataclasses
from collections.abc import Callable, Iterator
from itertools import pairwise

from data_pipeline.curation.candidate import Candidate, Reason, Rejected
from data_pipeline.curation.config import FilterConfig, ModelConfig

Limit = Callable[[Candidate, FilterConfig], str]
"""Returns what is wrong, with the number and the limit, or "" for a candidate that passes."""


def _short(clip: Candidate, cfg: FilterConfig) -> str:
    return _below("s", clip.duration_s, cfg.min_duration_s)


def _small(clip: Candidate, cfg: FilterConfig) -> str:
    return _below("pixels on the short side", min(clip.crop[2:]), cfg.min_short_side)


def _aspect(clip: Candidate, cfg: FilterConfig) -> str:
    aspect = clip.crop[3] / clip.crop[2]
    if cfg.min_aspect <= aspect <= cfg.max_aspect:
        return ""
    return f"width / height is {aspect:.3g}, outside {cfg.min_aspect:.3g} to {cfg.max_aspect:.3g}"


def _rate(clip: Candidate, cfg: FilterConfig) -> str:
    return _below("frames/s", clip.fps, cfg.min_fps)


def _bits(clip: Candidate, cfg: FilterConfig) -> str:
    return _below("bits per pixel", clip.measures["bits_per_pixel"], cfg.min_bits_per_pixel)


def _blurred(clip: Candidate, cfg: FilterConfig) -> str:
    return _below("sharpness", clip.measures["sharpness"], cfg.min_sharpness)


def _exposure(clip: Candidate, cfg: FilterConfig) -> str:
    dark, bright = clip.measures["luma"] < cfg.min_luma, clip.measures["luma"] > cfg.max_luma
    if dark or bright:
        return f"mean luma {clip.measures['luma']:.0f}, outside {cfg.min_luma:g} to {cfg.max_luma:g}"
    return _above("of its pixels black or white", clip.measures["clipped"], cfg.max_clipped)


def _static(clip: Candidate, cfg: FilterConfig) -> str:
    return _below("short sides/s of motion", clip.measures["motion"], cfg.min_motion)


def _fast(clip: Candidate, cfg: FilterConfig) -> str:
    return _above("short sides/s of motion", clip.measures["motion"], cfg.max_motion)


def _shaking(clip: Candidate, cfg: FilterConfig) -> str:
    return _above("short sides of shake", clip.measures["shake"], cfg.max_shake)


def _text(clip: Candidate, cfg: FilterConfig) -> str:
    return _above("of the picture under text", clip.measures["text"], cfg.max_text)


LIMITS: tuple[tuple[Reason, Limit, bool], ...] = (
    (Reason.TOO_SHORT, _short, False),
    (Reason.TOO_SMALL, _small, True),
    (Reason.ASPECT, _aspect, True),
    (Reason.FRAME_RATE, _rate, False),
    (Reason.BITS, _bits, False),
    (Reason.EXPOSURE, _exposure, True),
    (Reason.BLURRED, _blurred, True),
    (Reason.STATIC, _static, False),
    (Reason.FAST, _fast, False),
    (Reason.SHAKING, _shaking, False),
    (Reason.TEXT, _text, False),
)
"""(reason, limit, whether it is one for images too), in order."""


def apply_limits(clip: Candidate, cfg: FilterConfig) -> Candidate:
    """The candidate, rejected if it breaks a limit."""
    is_image = cfg.images and clip.whole and clip.num_frames == 1
    for reason, limit, for_images in LIMITS:
        problem = limit(clip, cfg) if for_images or not is_image else ""
        if problem:
            return dataclasses.replace(clip, rejected=Rejected("filters", reason, problem))
    return clip


def apply_scores(clip: Candidate, scores: dict[str, ModelConfig]) -> Candidate:
    """The candidate, rejected if a model's score is outside its limits, which stand at the model."""
    for name, model in sorted(scores.items()):
        value = clip.measures[name]
        problem = _below(name, value, model.least) or _above(name, value, model.most)
        if problem:
            return dataclasses.replace(clip, rejected=Rejected("models", Reason.SCORE, problem))
    return clip


def windows(start: int, end: int, fps: float, cfg: FilterConfig) -> Iterator[tuple[int, int]]:
    """[start, end) in pieces of nearly equal length, none longer than `max_duration_s`."""
    count = -(-(end - start) // max(1, int(cfg.max_duration_s * fps)))
    edges = [start + round(piece * (end - start) / count) for piece in range(count + 1)]
    yield from pairwise(edges)


def _below(what: str, value: float, limit: float) -> str:
    return f"{value:.3g} {what}, below {limit:.3g}" if not value >= limit else ""


def _above(what: str, value: float, limit: float) -> str:
    return f"{value:.3g} {what}, above {limit:.3g}" if value > limit else ""
