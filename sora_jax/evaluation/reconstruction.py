"""How well an autoencoder gives a clip back: PSNR, SSIM, LPIPS and temporal flicker, on 8-bit pixels.

PSNR is `10 log10(255² / MSE)` with the MSE over all pixels of a clip, then averaged over clips in dB. SSIM is that of
Wang, Bovik, Sheikh and Simoncelli (2004): Gaussian window of 11x11 with deviation 1.5, K1 = 0.01, K2 = 0.03, borders
left out, averaged over positions, channels, frames, then clips. Reconstructions are rounded to 8 bits first, as a
viewer sees them. Flicker is the mean |(x̂_t+1 - x̂_t) - (x_t+1 - x_t)| in 8-bit levels: change over time that was not
there, or is there no more; a wrong but steady picture has none.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

from data_pipeline.errors import UserError
from sora_jax.evaluation.latent_health import LatentHealth
from sora_jax.models.autoencoder import Posterior
from sora_jax.models.codec import Codec, to_float
from sora_jax.models.lpips import lpips
from sora_jax.models.lpips_weights import Lpips

PEAK = 255.0
SSIM_DEVIATION, SSIM_RADIUS = 1.5, 5
SSIM_C1, SSIM_C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
Scores = dict[str, float | None]
"""Measure → value of one clip, or the mean of several; None where a single frame has none."""
MAX_PSNR_DB = 100.0  # identical clips: infinity would spoil the mean


@dataclass(frozen=True)
class Reconstruction:
    """One clip beside what the autoencoder made of it."""

    original: UInt8[np.ndarray, "T Y X 3"]
    decoded: UInt8[np.ndarray, "T Y X 3"]

    @functools.cached_property
    def psnr_db(self) -> float:
        return psnr_db(self.original, self.decoded)

    @functools.cached_property
    def ssim(self) -> float:
        return ssim(self.original, self.decoded)

    @functools.cached_property
    def flicker(self) -> float | None:
        return flicker(self.original, self.decoded) if len(self.original) > 1 else None


def flicker(original: UInt8[np.ndarray, "T Y X 3"], decoded: UInt8[np.ndarray, "T Y X 3"]) -> float:
    """Mean absolute error of the change from frame to frame, in 8-bit levels, of a clip of two frames or more."""
    error = decoded.astype(np.float64) - original.astype(np.float64)
    return float(np.mean(np.abs(np.diff(error, axis=0))))


def scores(pairs: Sequence[Reconstruction], loaded: Lpips | None) -> list[Scores]:
    """Each clip's PSNR in dB, SSIM, flicker (None for a single frame), and LPIPS where its weights are given."""
    rows = [{"psnr_db": pair.psnr_db, "ssim": pair.ssim, "flicker": pair.flicker} for pair in pairs]
    if loaded is None:
        return rows
    return [row | {"lpips": distance} for row, distance in zip(rows, lpips_of_pairs(loaded, pairs), strict=True)]


def means(rows: Sequence[Scores]) -> Scores:
    """Of every measure the mean over the clips that have it, and PSNR's deviation from clip to clip."""
    values = {name: [v for row in rows if (v := row[name]) is not None] for name in rows[0]}
    found: Scores = {name: float(np.mean(v)) if v else None for name, v in values.items()}
    return {"num_clips": len(rows), **found, "psnr_db_deviation": float(np.std(values["psnr_db"]))}


def reconstruct_same(
    codec: Codec,
    pairs: Sequence[Reconstruction],
    name: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Reconstruction]:
    """Another autoencoder, `name`, on the very frames of `pairs`. Raises UserError where it cannot code them whole."""
    others, _ = reconstruct(codec, [pair.original for pair in pairs], on_progress=on_progress)
    for pair, other in zip(pairs, others, strict=True):
        if pair.original.shape != other.original.shape:
            wanted, found = (f"{len(x)} frames of {x.shape[2]}x{x.shape[1]}" for x in (pair.original, other.original))
            raise UserError(
                f"{name} codes only {found} of the {wanted} that are compared; give it as --autoencoder, and the other "
                "as --beside"
            )
    return others


def lpips_of_pairs(loaded: Lpips, pairs: Sequence[Reconstruction]) -> list[float]:
    """LPIPS of each clip, the mean over its frames. Raises UserError for frames too small for the backbone."""
    measure = jax.jit(functools.partial(lpips, loaded.net))

    def of_frame(original: UInt8[np.ndarray, "Y X 3"], decoded: UInt8[np.ndarray, "Y X 3"]) -> float:
        return float(measure(loaded.weights, to_float(decoded[None]), to_float(original[None]))[0])

    return [float(np.mean([of_frame(a, b) for a, b in zip(p.original, p.decoded, strict=True)])) for p in pairs]


def psnr_db(original: UInt8[np.ndarray, "T Y X 3"], decoded: UInt8[np.ndarray, "T Y X 3"]) -> float:
    """Peak signal-to-noise ratio of one clip in dB, at most `MAX_PSNR_DB`."""
    mse = np.mean((original.astype(np.float64) - decoded.astype(np.float64)) ** 2)
    return float(min(10 * np.log10(PEAK**2 / max(mse, 1e-12)), MAX_PSNR_DB))


def ssim(original: UInt8[np.ndarray, "T Y X 3"], decoded: UInt8[np.ndarray, "T Y X 3"]) -> float:
    """Mean structural similarity of one clip. Raises `UserError` for frames smaller than the window."""
    if min(original.shape[1:3]) <= 2 * SSIM_RADIUS:
        height, width = original.shape[1:3]
        raise UserError(f"SSIM needs frames larger than {2 * SSIM_RADIUS + 1} pixels a side, got {width}x{height}")
    a, b = original.astype(np.float64), decoded.astype(np.float64)
    mean_a, mean_b = _smooth(a), _smooth(b)
    variance_a = _smooth(a * a) - mean_a**2
    variance_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_a + variance_b + SSIM_C2)
    return float(np.mean(luminance * structure))


def _smooth(x: Float[np.ndarray, "T Y X 3"]) -> Float[np.ndarray, "T y x 3"]:
    r = SSIM_RADIUS
    return gaussian_filter(x, SSIM_DEVIATION, axes=(1, 2), radius=r)[:, r:-r, r:-r]


def to_legal(
    frames: UInt8[np.ndarray, "T Y X 3"], temporal_compression: int, spatial_compression: int
) -> UInt8[np.ndarray, "t y x 3"]:
    """The longest prefix of 1 + n·temporal frames, cropped at the centre to multiples of the spatial compression."""
    num_frames, height, width, _ = frames.shape
    t = 1 + (num_frames - 1) // temporal_compression * temporal_compression
    y, x = (size // spatial_compression * spatial_compression for size in (height, width))
    if not (y and x):
        raise UserError(f"a clip of {width}x{height} pixels is smaller than one latent ({spatial_compression} pixels)")
    top, left = (height - y) // 2, (width - x) // 2
    return frames[:t, top : top + y, left : left + x]


def reconstruct(
    codec: Codec,
    clips: Sequence[UInt8[np.ndarray, "_ _ _ 3"]],
    batch_rows: int = 8,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Reconstruction], LatentHealth]:
    """Encodes and decodes clips `[T, Y, X, 3]` of any shapes, made legal first; the order is kept. Calls
    `on_progress(clips done, clips)`."""
    config, health = codec.config, LatentHealth(len(codec.latent_mean))
    legal = [to_legal(clip, config.temporal_compression, config.spatial_compression) for clip in clips]
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, clip in enumerate(legal):
        by_shape[clip.shape].append(i)
    found: dict[int, Reconstruction] = {}
    for members in by_shape.values():
        size = min(batch_rows, len(members))
        for start in range(0, len(members), size):
            chosen = members[start : start + size]
            # a last, smaller batch would compile anew: it is filled up with copies of its first clip
            rows = chosen + [chosen[0]] * (size - len(chosen))
            posterior = codec.posterior(np.stack([legal[i] for i in rows]))
            health.add(Posterior(*(x[: len(chosen)] for x in posterior)))
            decoded = codec.decode(posterior.mean)
            found.update((i, Reconstruction(legal[i], decoded[row])) for row, i in enumerate(chosen))
            on_progress(len(found), len(legal))
    return [found[i] for i in range(len(legal))], health
