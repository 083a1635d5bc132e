"""What every attention kernel of ours is: a forward and a backward pass that also speak of the softmax's denominator.

FlashAttention (Dao et al. 2022): with `lse`, the logarithm of each query's softmax denominator, the backward pass needs
no logits, and results over parts of the keys can be merged (`context_parallel.py`). A kernel takes queries that are
scaled already, tensors `[B, L, N, K]`, ids `[B, L]`, and gives `lse [B, N, L]` in float32.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NO_KEYS = -1e30
"""The `lse` of a query without keys, whose output is zero. Finite, so that merging needs no special case; any real
logit is far above it, and a masked one (-inf, or splash's -1e38) far below: its weight exp(logit - lse) is zero."""


class Flash(NamedTuple):
    """`forward(q, k, v, q_ids, kv_ids) -> (out, lse)`; `backward(q, k, v, q_ids, kv_ids, out, lse, d_out)` gives the
    gradients of q, k and v. `out`, `lse` and `d_out` may be those over more keys than `k` holds."""

    forward: Callable[..., tuple[jax.Array, jax.Array]]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def flash_attention(
    kernel: Flash,
    q: Float[Array, "B L N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    q_segment_ids: Int[Array, "B L"],
    kv_segment_ids: Int[Array, "B S"],
) -> Float[Array, "B L N K"]:
    """Softmax attention within segments by `kernel`, differentiable; equal to `reference_attention`."""
    return _attend(kernel, scaled(q), k, v, q_segment_ids, kv_segment_ids)


def scaled(q: Float[Array, "B L N K"]) -> Float[Array, "B L N K"]:
    """Queries times `K ** -0.5`, the way kernels take them."""
    return q * q.shape[-1] ** -0.5


def row_dots(out: Float[Array, "B L N K"], d_out: Float[Array, "B L N K"]) -> Float[Array, "B N L"]:
    """rowsum(dO * O), FlashAttention's eq. 4, in float32."""
    return jnp.einsum("BLNK,BLNK->BNL", out.astype(jnp.float32), d_out.astype(jnp.float32))


def block_ranges(
    ids: Int[Array, " L"], other: Int[Array, " S"], block: int, other_block: int
) -> tuple[Int[Array, " I"], Int[Array, " I"]]:
    """For each block of a row's `ids` the half-open range of the blocks of `other` that hold the same segments. Ids
    must be contiguous and ascending with padding (0) last."""
    last = jnp.iinfo(jnp.int32).max
    ordered, blocks = jnp.where(other == 0, last, other), ids.reshape(-1, block)
    first_id = jnp.min(jnp.where(blocks == 0, last, blocks), axis=1)
    low = jnp.searchsorted(ordered, first_id, side="left")
    high = jnp.searchsorted(ordered, jnp.max(blocks, axis=1), side="right")
    first = low // other_block
    return first, jnp.where(high > low, -(-high // other_block), first)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(kernel: Flash, q, k, v, q_ids, kv_ids):
    return kernel.forward(q, k, v, q_ids, kv_ids)[0]


def _save(kernel: Flash, q, k, v, q_ids, kv_ids):
    out, lse = kernel.forward(q, k, v, q_ids, kv_ids)
    return out, (q, k, v, q_ids, kv_ids, out, lse)


def _gradients(kernel: Flash, saved, d_out):
    return *kernel.backward(*saved, d_out), None, None


_attend.defvjp(_save, _gradients)
