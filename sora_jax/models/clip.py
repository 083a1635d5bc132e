"""CLIP (Radford et al. 2021): pictures and captions as vectors of one space, whose angle says how well they fit.

Two transformers of one kind of block. That of captions is causal, and its vector is what stands at the caption's end;
that of pictures cuts them into patches and prepends a class token, whose last state is the vector. Only ever run, in
full float32: TPUs and GPUs would round factors to bfloat16 or TF32 by default, and scores with them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from data_pipeline.errors import UserError
from sora_jax.config import choose
from sora_jax.models.attention import reference_attention
from sora_jax.models.layers import definition, scan_blocks, stack

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1], as every published CLIP of OpenAI takes them."""
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


@dataclass(frozen=True)
class TowerConfig:
    """One of the two transformers."""

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        choose(ACTIVATIONS, self.activation, "CLIP's hidden_act")
        if min(self.width, self.depth, self.num_heads, self.mlp_width) < 1 or self.width % self.num_heads:
            raise UserError(
                f"CLIP's sizes must be at least 1 and {self.num_heads} heads divide a width of {self.width}: {self}"
            )


@dataclass(frozen=True)
class ClipConfig:
    """Sizes: `context` tokens of a caption, pictures of `side` pixels a side in patches of `patch`."""

    text: TowerConfig
    vision: TowerConfig
    vocab_size: int = 49_408
    context: int = 77
    side: int = 224
    patch: int = 32
    projection: int = 512

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.context, self.side, self.patch, self.projection) < 1 or self.side % self.patch:
            raise UserError(
                f"CLIP's sizes must be at least 1 and patches of {self.patch} divide {self.side} pixels: {self}"
            )


class ClipBlock(nnx.Module):
    """Pre-norm self-attention and MLP, with biases everywhere."""

    def __init__(self, cfg: TowerConfig, rngs: nnx.Rngs):
        heads = (cfg.num_heads, cfg.width // cfg.num_heads)
        self.norm_attention = nnx.LayerNorm(cfg.width, epsilon=cfg.norm_eps, rngs=rngs)
        self.query, self.key, self.value = (nnx.LinearGeneral(cfg.width, heads, rngs=rngs) for _ in range(3))
        self.attention_out = nnx.LinearGeneral(heads, cfg.width, axis=(-2, -1), rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(cfg.width, epsilon=cfg.norm_eps, rngs=rngs)
        self.mlp_in = nnx.Linear(cfg.width, cfg.mlp_width, rngs=rngs)
        self.mlp_out = nnx.Linear(cfg.mlp_width, cfg.width, rngs=rngs)
        self.activation = cfg.activation

    def __call__(self, x: Float[Array, "B L D"], bias: Float[Array, "1 N L L"] | None) -> Float[Array, "B L D"]:
        h = self.norm_attention(x)
        ones = jnp.ones(x.shape[:2], jnp.int32)
        h = reference_attention(self.query(h), self.key(h), self.value(h), ones, ones, bias)
        x = x + self.attention_out(h)
        return x + self.mlp_out(ACTIVATIONS[self.activation](self.mlp_in(self.norm_mlp(x))))


class ClipText(nnx.Module):
    """Captions to vectors."""

    def __init__(self, cfg: ClipConfig, rngs: nnx.Rngs):
        tower, draw = cfg.text, nnx.initializers.normal(0.02)
        self.embedding = nnx.Param(draw(rngs.params(), (cfg.vocab_size, tower.width)))
        self.positions = nnx.Param(draw(rngs.params(), (cfg.context, tower.width)))
        self.blocks = stack(lambda rngs: ClipBlock(tower, rngs), tower.depth, rngs)
        self.norm = nnx.LayerNorm(tower.width, epsilon=tower.norm_eps, rngs=rngs)
        self.projection = nnx.Linear(tower.width, cfg.projection, use_bias=False, rngs=rngs)
        self.num_heads = tower.num_heads

    def __call__(self, ids: Int[Array, "B S"], ends: Int[Array, " B"]) -> Float[Array, "B P"]:
        """`ends` are the places of the end-of-text tokens; what follows them is padding, which none before it sees."""
        length = ids.shape[1]
        x = self.embedding[...][ids] + self.positions[...][:length]
        future = jnp.where(jnp.tri(length, dtype=bool), 0.0, -jnp.inf)
        x = scan_blocks(self.blocks, x, "none", jnp.broadcast_to(future, (1, self.num_heads, length, length)))
        return self.projection(self.norm(x[jnp.arange(len(x)), ends]))


class ClipVision(nnx.Module):
    """Pictures to vectors."""

    def __init__(self, cfg: ClipConfig, rngs: nnx.Rngs):
        tower, draw = cfg.vision, nnx.initializers.normal(0.02)
        linear = functools.partial(nnx.LinearGeneral, axis=(-3, -2, -1), use_bias=False, rngs=rngs)
        self.patches = linear((cfg.patch, cfg.patch, 3), tower.width)  # a convolution whose stride is its size
        self.class_token = nnx.Param(draw(rngs.params(), (tower.width,)))
        self.positions = nnx.Param(draw(rngs.params(), ((cfg.side // cfg.patch) ** 2 + 1, tower.width)))
        self.norm_in = nnx.LayerNorm(tower.width, epsilon=tower.norm_eps, rngs=rngs)
        self.blocks = stack(lambda rngs: ClipBlock(tower, rngs), tower.depth, rngs)
        self.norm = nnx.LayerNorm(tower.width, epsilon=tower.norm_eps, rngs=rngs)
        self.projection = nnx.Linear(tower.width, cfg.projection, use_bias=False, rngs=rngs)
        self.patch = cfg.patch

    def __call__(self, pictures: Float[Array, "B Y X 3"]) -> Float[Array, "B P"]:
        """Pictures of the config's side, less `MEAN` and over `DEVIATION`."""
        num, height, width, _ = pictures.shape
        rows, columns = height // self.patch, width // self.patch
        x = pictures.reshape(num, rows, self.patch, columns, self.patch, 3).swapaxes(2, 3)
        x = self.patches(x).reshape(num, rows * columns, -1)
        first = jnp.broadcast_to(self.class_token[...], (num, 1, x.shape[-1]))
        x = self.norm_in(jnp.concatenate([first, x], axis=1) + self.positions[...])
        return self.projection(self.norm(scan_blocks(self.blocks, x, "none", None)[:, 0]))


@functools.cache
def text_definition(cfg: ClipConfig) -> Any:
    """The tower of captions without its parameters."""
    return definition(lambda rngs: ClipText(cfg, rngs))


@functools.cache
def vision_definition(cfg: ClipConfig) -> Any:
    """The tower of pictures without its parameters."""
    return definition(lambda rngs: ClipVision(cfg, rngs))


def text_vectors(cfg: ClipConfig, params: Any, ids: Int[Array, "B S"], ends: Int[Array, " B"]) -> Float[Array, "B P"]:
    """Unit vectors of captions."""
    with jax.default_matmul_precision("highest"):
        return _unit(nnx.merge(text_definition(cfg), params)(ids, ends))


def picture_vectors(cfg: ClipConfig, params: Any, pictures: UInt8[Array, "B Y X 3"]) -> Float[Array, "B P"]:
    """Unit vectors of pictures of the config's side."""
    with jax.default_matmul_precision("highest"):
        x = (pictures.astype(jnp.float32) / 255 - jnp.asarray(MEAN)) / jnp.asarray(DEVIATION)
        return _unit(nnx.merge(vision_definition(cfg), params)(x))


def _unit(x: Float[Array, "B P"]) -> Float[Array, "B P"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
