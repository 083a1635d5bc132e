"""A small bidirectional transformer over packed captions, trained jointly with the generator."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from data_pipeline.errors import UserError
from sora_jax.models.attention import SelfAttention
from sora_jax.models.layers import DTYPES, RMSNorm, scan_blocks, stack
from sora_jax.models.rope import Angles, rotary_1d
from sora_jax.parallel import constrain


@dataclass(frozen=True)
class TextEncoderConfig:
    """`vocab_size` is the tokenizer's, its end-of-caption token included."""

    vocab_size: int
    width: int = 256
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width % (2 * self.num_heads):
            raise UserError(
                f"text.depth={self.depth} must be at least 1, and text.width={self.width} over text.num_heads="
                f"{self.num_heads} must give an even head width"
            )


class TextBlock(nnx.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, cfg: TextEncoderConfig, dtype: str, rngs: nnx.Rngs):
        self.norm_attention = RMSNorm(cfg.width)
        self.attention = SelfAttention(cfg.width, cfg.num_heads, dtype, rngs, dim="text")
        self.norm_mlp = RMSNorm(cfg.width)
        self.mlp_in = nnx.Linear(cfg.width, cfg.width * cfg.mlp_ratio, dtype=DTYPES[dtype], rngs=rngs)
        self.mlp_out = nnx.Linear(cfg.width * cfg.mlp_ratio, cfg.width, dtype=DTYPES[dtype], rngs=rngs)

    def __call__(
        self, x: Float[Array, "B S E"], segment_ids: Int[Array, "B S"], angles: Angles
    ) -> Float[Array, "B S E"]:
        x = x + self.attention(self.norm_attention(x), segment_ids, angles)
        return x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.norm_mlp(x))))


class TextEncoder(nnx.Module):
    """Token ids `[B, S]` of several captions a row → features `[B, S, E]`; captions do not see each other."""

    def __init__(self, cfg: TextEncoderConfig, dtype: str, rngs: nnx.Rngs):
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (cfg.vocab_size, cfg.width)) * 0.02 * 5)
        self.blocks = stack(lambda rngs: TextBlock(cfg, dtype, rngs), cfg.depth, rngs)
        self.norm = RMSNorm(cfg.width)
        self.cfg, self.dtype = cfg, dtype

    def __call__(
        self, ids: Int[Array, "B S"], segment_ids: Int[Array, "B S"], positions: Int[Array, "B S"]
    ) -> Float[Array, "B S E"]:
        x = jnp.take(self.embedding[...], ids, axis=0).astype(DTYPES[self.dtype])
        x = constrain(x, "row", None, None)
        angles = rotary_1d(positions.astype(jnp.float32), self.cfg.width // self.cfg.num_heads, 10_000.0)
        return self.norm(scan_blocks(self.blocks, x, "none", segment_ids, angles))
