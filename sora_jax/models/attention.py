"""Attention over packed rows: one seam, one oracle, and kernels that are tested against it.

A token attends to the tokens of its own segment and to nothing else; id 0 is padding, which attends to nothing and
yields zeros. Segments are contiguous with ascending ids and padding comes last (DESIGN: packing), so the keys that a
block of queries needs are one range: a kernel's work follows the sum of squared segment lengths, not L².
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from data_pipeline.errors import UserError
from sora_jax.config import choose
from sora_jax.models.blockwise import BLOCKWISE
from sora_jax.models.context_parallel import spread_attention
from sora_jax.models.flash import Flash, flash_attention
from sora_jax.models.layers import DTYPES, RMSNorm
from sora_jax.models.rope import Angles, rotate
from sora_jax.models.splash import splash
from sora_jax.models.triton import triton
from sora_jax.parallel import mesh_platform, spec

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def reference_attention(
    q: Float[Array, "B L N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    q_segment_ids: Int[Array, "B L"],
    kv_segment_ids: Int[Array, "B S"],
    bias: Float[Array, "#B N L S"] | None = None,
) -> Float[Array, "B L N K"]:
    """Plain softmax attention in float32, `[L, S]` logits and all: what every kernel must equal.

    `bias` is added to the scaled logits (T5's relative positions).
    """
    logits = jnp.einsum("BLNK,BSNK->BNLS", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias
    mask = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (kv_segment_ids[:, None, :] > 0)
    logits = jnp.where(mask[:, None], logits, -jnp.inf)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - jnp.where(jnp.isfinite(highest), highest, 0.0))  # a row without keys: zeros, not NaN
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    return jnp.einsum("BNLS,BSNK->BLNK", weights.astype(v.dtype), v)


FLASH: dict[str, Flash] = {"blockwise": BLOCKWISE, "splash": splash(), "triton": triton()}
KERNELS: dict[str, AttentionFn] = {
    "reference": reference_attention,
    **{name: functools.partial(flash_attention, kernel) for name, kernel in FLASH.items()},
}

PLATFORM_KERNELS = {"cpu": "blockwise", "tpu": "splash", "gpu": "triton"}
"""What `auto` takes for long rows, by the platform of the mesh; where none is written for it, `blockwise`."""

REFERENCE_LENGTH = 384
"""Up to this many tokens a row's whole `[L, S]` logits are cheaper than blocks of 128 (see LOG.md)."""


def attention(
    q: Float[Array, "B L N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    q_segment_ids: Int[Array, "B L"],
    kv_segment_ids: Int[Array, "B S"],
    kernel: str = "auto",
    bias: Float[Array, "#B N L S"] | None = None,
    dims: tuple[str, str] = ("token", "token"),
) -> Float[Array, "B L N K"]:
    """The seam. `kernel` names one of KERNELS, or `auto` chooses by the rows' length and the mesh's platform.

    On the mesh of `jax.set_mesh` every device computes its own rows and heads: kernels need not be partitioned.
    `dims` are the logical dims of queries and keys: `token` is spread over the axis `context`, `text` whole on every
    device, so that text is attended to without an exchange.
    Raises UserError for a kernel that does not run on the mesh's platform, or cannot add a bias.
    """
    name = choose_kernel(kernel, max(q.shape[1], k.shape[1]), bias is not None)
    args, mesh = (q, k, v, q_segment_ids, kv_segment_ids), jax.sharding.get_abstract_mesh()
    args = args if bias is None else (*args, bias)
    if mesh.empty or mesh.size == 1:
        return KERNELS[name](*args)
    queries, keys = (spec(("row", dim, "heads", None), x.shape, mesh) for dim, x in zip(dims, (q, k), strict=True))
    if name in FLASH and queries[1] and keys[1]:
        compute, specs = functools.partial(spread_attention, FLASH[name]), (queries, keys, keys, P(keys[0]), P(keys[0]))
    else:  # each device's queries see whole keys; `reference` makes whole logits of them anyway
        whole = P(keys[0], None, keys[2])
        compute, specs = KERNELS[name], (queries, whole, whole, P(*queries[:2]), P(keys[0]))
    if bias is not None:
        specs = (*specs, P(None if bias.shape[0] == 1 else queries[0], queries[2], queries[1]))
    return jax.shard_map(compute, in_specs=specs, out_specs=queries, check_vma=False)(*args)


def choose_kernel(kernel: str, length: int, has_bias: bool) -> str:
    """The name of the kernel for rows of `length` tokens on the mesh of `jax.set_mesh`."""
    platform = mesh_platform()
    if kernel == "auto":
        is_short = length <= REFERENCE_LENGTH
        return "reference" if is_short or has_bias else PLATFORM_KERNELS.get(platform, "blockwise")
    choose(KERNELS, kernel, "attention kernel")
    if has_bias and kernel != "reference":
        raise UserError(f"the attention kernel '{kernel}' adds no bias to the logits; 'reference' does")
    written_for = next((p for p, name in PLATFORM_KERNELS.items() if name == kernel), "cpu")
    if written_for not in ("cpu", platform):
        best = PLATFORM_KERNELS.get(platform, "blockwise")
        raise UserError(
            f"the attention kernel '{kernel}' is written for {written_for}, but the mesh is of {platform}; "
            f"take '{best}', or 'auto', which chooses by the mesh"
        )
    return kernel


class SelfAttention(nnx.Module):
    """Multi-head self-attention with QK-norm (Dehghani et al. 2023) and rotary positions, along the logical `dim`."""

    def __init__(
        self, width: int, num_heads: int, dtype: str, rngs: nnx.Rngs, kernel: str = "auto", dim: str = "token"
    ):
        head, kind = width // num_heads, DTYPES[dtype]
        self.query = nnx.LinearGeneral(width, (num_heads, head), dtype=kind, rngs=rngs)
        self.key = nnx.LinearGeneral(width, (num_heads, head), dtype=kind, rngs=rngs)
        self.value = nnx.LinearGeneral(width, (num_heads, head), dtype=kind, rngs=rngs)
        self.query_norm, self.key_norm = RMSNorm(head), RMSNorm(head)
        self.attention_out = nnx.LinearGeneral((num_heads, head), width, axis=(-2, -1), dtype=kind, rngs=rngs)
        self.kernel, self.dim = kernel, dim

    def __call__(
        self, x: Float[Array, "B L D"], segment_ids: Int[Array, "B L"], angles: Angles
    ) -> Float[Array, "B L D"]:
        q = rotate(self.query_norm(self.query(x)), angles)
        k = rotate(self.key_norm(self.key(x)), angles)
        dims = (self.dim, self.dim)
        return self.attention_out(attention(q, k, self.value(x), segment_ids, segment_ids, self.kernel, dims=dims))


class CrossAttention(nnx.Module):
    """Video tokens attend to the text tokens of their own segment. Starts as the identity: with `starts_at_zero`, its
    output is zero."""

    def __init__(
        self,
        width: int,
        text_width: int,
        num_heads: int,
        dtype: str,
        rngs: nnx.Rngs,
        kernel: str = "auto",
        starts_at_zero: bool = True,
    ):
        head, kind = width // num_heads, DTYPES[dtype]
        first = nnx.initializers.zeros if starts_at_zero else nnx.initializers.lecun_normal()
        self.query = nnx.LinearGeneral(width, (num_heads, head), dtype=kind, rngs=rngs)
        self.key = nnx.LinearGeneral(text_width, (num_heads, head), dtype=kind, rngs=rngs)
        self.value = nnx.LinearGeneral(text_width, (num_heads, head), dtype=kind, rngs=rngs)
        self.query_norm, self.key_norm = RMSNorm(head), RMSNorm(head)
        self.attention_out = nnx.LinearGeneral(
            (num_heads, head), width, axis=(-2, -1), dtype=kind, rngs=rngs, kernel_init=first
        )
        self.kernel = kernel

    def __call__(
        self,
        x: Float[Array, "B L D"],
        text: Float[Array, "B S E"],
        segment_ids: Int[Array, "B L"],
        text_segment_ids: Int[Array, "B S"],
    ) -> Float[Array, "B L D"]:
        q, k = self.query_norm(self.query(x)), self.key_norm(self.key(text))
        ids, dims = (segment_ids, text_segment_ids), ("token", "text")
        return self.attention_out(attention(q, k, self.value(text), *ids, self.kernel, dims=dims))
