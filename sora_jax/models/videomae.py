"""VideoMAE V2's encoder (Wang et al. 2023), as the content-debiased FVD uses it (Ge et al. 2024).

A pre-norm ViT over tubelets of two frames: sinusoidal positions that count through time, rows and columns, queries and
values with a bias and keys without one. The features are the mean of all tokens after a layer norm (`fc_norm`). The
published network is ViT-g, fine-tuned on Something-Something V2; its classifier stands after the features and is not
read.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from data_pipeline.errors import UserError
from sora_jax.models.layers import scan_blocks, stack

TUBELET = 2
"""Frames of a token."""
TRAINED_FRAMES = 16
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""By the width of the network; 64 for any other (ViT-S, ViT-B, ViT-L)."""
PARTS = {
    "norm1": "norm1",
    "attn.proj": "proj",
    "norm2": "norm2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
"""What a block's modules are called in the published file, and here."""


@dataclass(frozen=True)
class VideoMaeConfig:
    """Sizes of the encoder; `patch` pixels a side and two frames are one token."""

    width: int
    depth: int
    mlp_width: int
    patch: int
    norm_eps: float = 1e-6

    @property
    def num_heads(self) -> int:
        return self.width // HEAD_WIDTHS.get(self.width, 64)


GIANT = VideoMaeConfig(width=1408, depth=40, mlp_width=6144, patch=14)
BASE = VideoMaeConfig(width=768, depth=12, mlp_width=3072, patch=16)


class Block(nnx.Module):
    """Pre-norm attention among all tokens, and an MLP."""

    def __init__(self, cfg: VideoMaeConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.norm1, self.norm2 = _norm(cfg, rngs), _norm(cfg, rngs)
        self.qkv, self.proj = _linear(cfg.width, 3 * cfg.width, rngs), _linear(cfg.width, cfg.width, rngs)
        self.fc1, self.fc2 = _linear(cfg.width, cfg.mlp_width, rngs), _linear(cfg.mlp_width, cfg.width, rngs)

    def __call__(self, x: Float[Array, "N L D"]) -> Float[Array, "N L D"]:
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, self.cfg.num_heads, -1), 2, 0)
        with jax.default_matmul_precision("highest"):
            h = jax.nn.dot_product_attention(q, k, v)
        x = x + self.proj(h.reshape(x.shape))
        return x + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x)), approximate=False))


def _norm(cfg: VideoMaeConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(cfg.width, epsilon=cfg.norm_eps, use_fast_variance=False, rngs=rngs)


def _linear(width_in: int, width: int, rngs: nnx.Rngs) -> nnx.Linear:
    # In full float32: TPUs and GPUs would round factors to bfloat16 or TF32 by default, and scores with them.
    return nnx.Linear(width_in, width, precision=jax.lax.Precision.HIGHEST, rngs=rngs)


class VideoMae(nnx.Module):
    """Videos to features."""

    def __init__(self, cfg: VideoMaeConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.patch_embed = _linear(TUBELET * cfg.patch**2 * 3, cfg.width, rngs)
        self.blocks = stack(lambda rngs: Block(cfg, rngs), cfg.depth, rngs)
        self.fc_norm = _norm(cfg, rngs)

    def __call__(self, x: Float[Array, "N T Y X 3"]) -> Float[Array, "N D"]:
        """The features of videos in [0, 1]. Raises UserError for sides or frames that are no whole tokens."""
        n, frames, height, width, _ = x.shape
        check_frames(frames)
        p = self.cfg.patch
        if height % p or width % p:
            raise UserError(f"VideoMAE's patches have {p} pixels a side, which do not divide {height}x{width}")
        grid = frames // TUBELET, height // p, width // p
        x = x.reshape(n, grid[0], TUBELET, grid[1], p, grid[2], p, 3)
        x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(n, grid[0] * grid[1] * grid[2], -1)
        x = self.patch_embed(x) + positions(grid, self.cfg.width)
        return self.fc_norm(jnp.mean(scan_blocks(self.blocks, x, "none"), axis=1))


def check_frames(frames: int) -> None:
    """Raises UserError for a number of frames that VideoMAE does not take."""
    if frames < TUBELET or frames % TUBELET:
        raise UserError(f"VideoMAE takes pairs of frames, got {frames}; ask for an even number with --frames")


@functools.cache
def positions(grid: tuple[int, int, int], width: int) -> Float32[np.ndarray, "L D"]:
    """The sinusoids (Vaswani et al. 2017) of every token, which are numbered through the 16 trained frames.

    For another number of frames they are interpolated over time as published, where PyTorch is given a tenth of a token
    more than there are.
    """
    trained = TRAINED_FRAMES // TUBELET
    places = np.arange(trained * grid[1] * grid[2])[:, None]
    angles = places / 10000 ** (2 * (np.arange(width) // 2) / width)
    table = np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)
    if grid[0] == trained:
        return table
    by_time = table.reshape(trained, -1, width)
    at = np.maximum((np.arange(grid[0]) + 0.5) * trained / (grid[0] + 0.1) - 0.5, 0)
    low = np.minimum(at.astype(int), trained - 1)
    weight = (at - low)[:, None, None].astype(np.float32)
    mixed = (1 - weight) * by_time[low] + weight * by_time[np.minimum(low + 1, trained - 1)]
    return mixed.reshape(-1, width)


def config_of(tensors: Mapping[str, np.ndarray], norm_eps: float = 1e-6) -> VideoMaeConfig:
    """The sizes that a file's tensors have; those of ViT-g where they are none of this network's.

    Raises UserError for a width that is no whole number of heads.
    """
    first, hidden = tensors.get("patch_embed.proj.weight"), tensors.get("blocks.0.mlp.fc1.weight")
    if first is None or hidden is None or first.ndim != 5 or hidden.ndim != 2:
        return GIANT
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    config = VideoMaeConfig(len(first), depth, len(hidden), first.shape[-1], norm_eps)
    if config.width % HEAD_WIDTHS.get(config.width, 64):
        raise UserError(f"VideoMAE's width is {config.width}, but must be a multiple of 64, the width of a head")
    return config


def videomae_shapes(cfg: VideoMaeConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that is read, in PyTorch's layout."""
    width, mlp = cfg.width, cfg.mlp_width
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (width, 3, TUBELET, cfg.patch, cfg.patch)}
    shapes["patch_embed.proj.bias"] = (width,)
    sizes = {"norm1": (width,), "attn.proj": (width, width), "norm2": (width,)}
    sizes |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
    for i in range(cfg.depth):
        block = f"blocks.{i}."
        shapes |= {f"{block}attn.qkv.weight": (3 * width, width)}
        shapes |= {f"{block}attn.{name}": (width,) for name in ("q_bias", "v_bias")}
        for name, shape in sizes.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return shapes | {"fc_norm.weight": (width,), "fc_norm.bias": (width,)}


def videomae_params(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of `VideoMae` from a file's tensors."""
    kernel, bias = (tensors[f"patch_embed.proj.{part}"] for part in ("weight", "bias"))
    blocks = [_block_params(tensors, f"blocks.{i}.") for i in range(config_of(tensors).depth)]
    return {
        "patch_embed": {"kernel": kernel.transpose(2, 3, 4, 1, 0).reshape(-1, len(kernel)), "bias": bias},
        "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks),
        "fc_norm": {"scale": tensors["fc_norm.weight"], "bias": tensors["fc_norm.bias"]},
    }


def _block_params(tensors: Mapping[str, np.ndarray], block: str) -> dict[str, Any]:
    q_bias, v_bias = (tensors[f"{block}attn.{name}"] for name in ("q_bias", "v_bias"))
    params = {
        "qkv": {
            "kernel": tensors[f"{block}attn.qkv.weight"].T,
            "bias": np.concatenate([q_bias, np.zeros_like(q_bias), v_bias]),
        }
    }
    for theirs, ours in PARTS.items():
        weight, name = tensors[f"{block}{theirs}.weight"], "scale" if ours.startswith("norm") else "kernel"
        params[ours] = {name: weight.T, "bias": tensors[f"{block}{theirs}.bias"]}  # a vector is its own transpose
    return params
