"""The encoders of T5 (Raffel et al. 2020), T5 v1.1 and umT5 (Chung et al. 2023), over packed captions.

Positions enter as a learned bias on the logits for each bucket of relative distances (section 2.1): T5 learns one
table, which all layers share, umT5 one for each layer. Logits are not scaled, no layer has a bias, and v1.1 and umT5
gate their MLP (Shazeer 2020). Distances are those within a caption, and captions do not see each other, so that a
packed row gives each caption the features that it has alone.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from data_pipeline.errors import UserError
from sora_jax import flops
from sora_jax.models.attention import reference_attention
from sora_jax.models.layers import DTYPES, RMSNorm, definition, scan_blocks, stack
from sora_jax.parallel import constrain


@dataclass(frozen=True)
class T5Config:
    """Sizes of an encoder. `dtype` is that of activations, weight matrices and the embedding; norms are float32.

    `is_gated`: T5 v1.1's and umT5's gated GELU instead of T5's ReLU. `bias_per_layer`: umT5's tables. Half of
    `num_buckets` are for each direction, half of those for one distance each, the others grow up to `max_distance`.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    head_width: int
    mlp_width: int
    is_gated: bool
    bias_per_layer: bool
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"the text encoder's dtype is '{self.dtype}', which is none of {', '.join(DTYPES)}")
        sizes = self.vocab_size, self.width, self.depth, self.num_heads, self.head_width, self.mlp_width
        if min(sizes) < 1:
            raise UserError(f"the text encoder's sizes {sizes} must all be at least 1")
        if self.num_buckets < 4 or self.num_buckets % 4 or self.max_distance <= self.num_buckets // 4:
            raise UserError(
                f"the text encoder has {self.num_buckets} buckets up to distance {self.max_distance}; the number must "
                f"divide by 4, and the distance be above {self.num_buckets // 4}, a quarter of it"
            )


class RelativeBias(nnx.Module):
    """A number for each bucket of distances and each head, added to the logits."""

    def __init__(self, cfg: T5Config):
        self.table = nnx.Param(jnp.zeros((cfg.num_buckets, cfg.num_heads)))
        self.cfg = cfg

    def __call__(self, positions: Int[Array, "B S"]) -> Float[Array, "B N S S"]:
        """The bias of each pair (query, key) of tokens at these positions within their captions."""
        farthest = self.cfg.max_distance
        distances = jnp.clip(positions[:, None, :] - positions[:, :, None], -farthest, farthest)
        by_distance = self.table[...][buckets(self.cfg.num_buckets, farthest)]  # [2 farthest + 1, N]
        return jnp.moveaxis(by_distance[distances + farthest], -1, 1)


class T5Block(nnx.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, cfg: T5Config, rngs: nnx.Rngs):
        heads = (cfg.num_heads, cfg.head_width)
        linear = functools.partial(
            nnx.LinearGeneral, use_bias=False, dtype=DTYPES[cfg.dtype], param_dtype=DTYPES[cfg.dtype], rngs=rngs
        )
        self.norm_attention = RMSNorm(cfg.width, eps=cfg.norm_eps)
        self.query, self.key, self.value = (linear(cfg.width, heads) for _ in range(3))
        self.attention_out = linear(heads, cfg.width, axis=(-2, -1))
        self.relative_bias = RelativeBias(cfg) if cfg.bias_per_layer else None
        self.norm_mlp = RMSNorm(cfg.width, eps=cfg.norm_eps)
        self.mlp_in = linear(cfg.width, cfg.mlp_width)
        self.mlp_gate = linear(cfg.width, cfg.mlp_width) if cfg.is_gated else None
        self.mlp_out = linear(cfg.mlp_width, cfg.width)
        self.cfg = cfg

    def __call__(
        self,
        x: Float[Array, "B S E"],
        segment_ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        bias: Float[Array, "B N S S"] | None,
    ) -> Float[Array, "B S E"]:
        """`bias` is the one that all layers share, None where each has its own."""
        if self.relative_bias is not None:
            bias = self.relative_bias(positions)
        h = self.norm_attention(x)
        q = self.query(h) * self.cfg.head_width**0.5  # undoes the scale of the logits, which T5 has not
        h = reference_attention(q, self.key(h), self.value(h), segment_ids, segment_ids, bias)
        x = x + self.attention_out(h)
        h = self.norm_mlp(x)
        if self.mlp_gate is not None:
            h = jax.nn.gelu(self.mlp_gate(h), approximate=True) * self.mlp_in(h)
        else:
            h = jax.nn.relu(self.mlp_in(h))
        return constrain(x + self.mlp_out(constrain(h, "row", None, "mlp")), "row", None, None)


class T5Encoder(nnx.Module):
    """Token ids `[B, S]` of several captions a row → features `[B, S, E]`, as if each caption were alone."""

    def __init__(self, cfg: T5Config, rngs: nnx.Rngs):
        kind = DTYPES[cfg.dtype]
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (cfg.vocab_size, cfg.width), kind))
        self.relative_bias = None if cfg.bias_per_layer else RelativeBias(cfg)
        self.blocks = stack(lambda rngs: T5Block(cfg, rngs), cfg.depth, rngs)
        self.norm = RMSNorm(cfg.width, eps=cfg.norm_eps)

    def __call__(
        self, ids: Int[Array, "B S"], segment_ids: Int[Array, "B S"], positions: Int[Array, "B S"]
    ) -> Float[Array, "B S E"]:
        """`positions` count from 0 in each caption; segment 0 is padding, whose features mean nothing."""
        x = constrain(jnp.take(self.embedding[...], ids, axis=0), "row", None, None)
        bias = None if self.relative_bias is None else self.relative_bias(positions)
        return self.norm(scan_blocks(self.blocks, x, "none", segment_ids, positions, bias))


@functools.cache
def t5_definition(cfg: T5Config) -> Any:
    """The encoder without its parameters."""
    return definition(lambda rngs: T5Encoder(cfg, rngs))


def buckets(num_buckets: int, max_distance: int) -> Int[np.ndarray, " distances"]:
    """The bucket of each distance (key minus query) from -max_distance to max_distance; farther ones have the last's.

    As T5 computes them in float32: exact for small distances, logarithmic up to the largest.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = np.arange(-max_distance, max_distance + 1)
    ratio = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact))
    large = exact + (ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int64)
    within = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(large, half - 1))
    return within + half * (distance > 0)


def forward_flops(cfg: T5Config, text_lengths: Sequence[int]) -> float:
    """FLOPs of one forward pass over captions of these lengths, by the conventions of `flops.py`."""
    heads, matrices = cfg.num_heads * cfg.head_width, 3 if cfg.is_gated else 2
    tokens = float(sum(text_lengths))
    return cfg.depth * (
        flops.linear(tokens, cfg.width, 4 * heads + matrices * cfg.mlp_width)
        + flops.attention(text_lengths, text_lengths, heads)
    )
