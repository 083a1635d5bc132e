"""A start from principal components: before its first step an autoencoder is the best linear code of its own shape.

A fresh network whose residual blocks start at zero and whose latents are not normalised (`norm_latents=False`) is a
chain of linear maps. Each map of the encoder becomes the first principal components of what reaches it (Pearson 1901:
of all linear codes as wide the one of least squared error), the decoder's maps their transposes. Latents have mean 0,
deviation 1 (each, or all together if they are not whitened: then distances are in proportion to the pictures') and
hardly any noise. On a CPU this is what the first thousands of steps would be spent on.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float, Float32, UInt8

from data_pipeline.errors import UserError
from sora_jax.models.autoencoder import AutoencoderConfig

START_LOG_VARIANCE = -8.0
"""Of the latents: noise 35 dB below a deviation of 1, so nearer to channels that are smaller."""
LEAST_VARIANCE = 1e-8

Weights = dict[tuple[str, ...], Float32[np.ndarray, "..."]]
"""Path within the autoencoder's parameters → value."""


def principal_weights(
    cfg: AutoencoderConfig, videos: Iterable[UInt8[np.ndarray, "B T Y X 3"]], whiten: bool = True
) -> Weights:
    """All linear maps between the blocks, from training clips of 1 + c n frames.

    `whiten` divides each latent channel by its own deviation, else all of them by one: the root mean square.

    Raises UserError for a network that normalises its latents, for clips of one frame, and for too few of them.
    """
    if cfg.norm_latents:
        raise UserError("config.start.principal_batches needs config.model.norm_latents=False: a linear network")
    c = cfg.temporal_compression
    # the frame that stands alone is left out: of what it is coded with, the other frames' code is good enough
    xs = [v[:, v.shape[1] % c :].astype(np.float32) / 127.5 - 1.0 for v in videos if v.shape[1] > c]
    if not xs:
        raise UserError(f"config.start.principal_batches needs clips of {1 + c} frames or more among config.data.crops")
    weights: Weights = {}
    xs = [_to_depth(x, 1, cfg.patch_size) for x in xs]
    for i, stage in enumerate(cfg.stages):
        xs = [_to_depth(x, stage.time, stage.space) for x in xs]
        xs = _add(weights, xs, stage.width, ("encoder", "down", f"stage_{i}"), ("decoder", "up", f"stage_{i}"))
    _add_latents(weights, xs, cfg.latent_channels, whiten)
    return weights


def with_weights(params: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """An autoencoder's parameters with these in place of their own."""
    flat = traverse_util.flatten_dict(params)
    wrong = [path for path, value in weights.items() if path not in flat or flat[path].shape != value.shape]
    assert not wrong, f"no parameters of this network: {wrong}"
    return traverse_util.unflatten_dict(flat | weights)


def _to_depth(x: Float32[np.ndarray, "B T Y X D"], time: int, space: int) -> Float32[np.ndarray, "B T2 Y2 X2 E"]:
    """What `frames_to_depth` and then `space_to_depth` make of it, in numpy: what calls this may be under trace."""
    b, t, y, z, d = x.shape
    x = x.reshape(b, t // time, time, y // space, space, z // space, space, d).transpose(0, 1, 3, 5, 4, 6, 2, 7)
    return x.reshape(b, t // time, y // space, z // space, -1)


def _add(
    weights: Weights, xs: list[np.ndarray], width: int, down: tuple[str, ...], up: tuple[str, ...]
) -> list[np.ndarray]:
    """The map to the first `width` components and back, and what the former makes of `xs`."""
    mean, components, _ = _components(xs, width)
    weights |= {(*down, "kernel"): components, (*down, "bias"): -mean @ components}
    weights |= {(*up, "kernel"): components.T.copy(), (*up, "bias"): mean}
    return [(x - mean) @ components for x in xs]


def _add_latents(weights: Weights, xs: list[np.ndarray], channels: int, whiten: bool) -> None:
    mean, components, variance = _components(xs, channels)
    if not whiten:
        variance = np.full_like(variance, variance.mean())
    deviation = np.sqrt(np.maximum(variance, LEAST_VARIANCE)).astype(np.float32)
    kernel = components / deviation
    weights["encoder", "latents_out", "kernel"] = np.concatenate([kernel, np.zeros_like(kernel)], axis=1)
    noise = np.full(channels, START_LOG_VARIANCE, np.float32)
    weights["encoder", "latents_out", "bias"] = np.concatenate([-mean @ kernel, noise])
    weights["decoder", "latents_in", "kernel"] = (components * deviation).T.copy()
    weights["decoder", "latents_in", "bias"] = mean


def _components(
    xs: list[np.ndarray], width: int
) -> tuple[Float32[np.ndarray, " D"], Float32[np.ndarray, "D width"], Float[np.ndarray, " width"]]:
    """Mean, the first components and their variances; columns and variances of zero where `width` exceeds D."""
    x = np.concatenate([part.reshape(-1, part.shape[-1]) for part in xs])
    if len(x) < x.shape[1]:
        raise UserError(
            f"{len(x)} positions are too few for {x.shape[1]} components; raise config.start.principal_batches"
        )
    mean = x.mean(0, dtype=np.float64)
    centred = x - mean.astype(np.float32)
    variance, components = np.linalg.eigh((centred.T @ centred / len(x)).astype(np.float64))
    variance, components = variance[::-1][:width], components[:, ::-1][:, :width]
    missing = width - len(variance)
    components = np.pad(components, ((0, 0), (0, missing)))
    return mean.astype(np.float32), components.astype(np.float32), np.pad(variance, (0, missing))
