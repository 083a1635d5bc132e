"""Attention in blocks (Rabe & Staats 2021; Dao et al. 2022, algorithm 1 and 4) in plain XLA, for CPU.

Memory is linear in the row, and each block of queries visits only the blocks of keys whose segments overlap its own.
The rows of a batch are visited one after another, because each has its own ranges.
"""

import functools

import jax
import jax.numpy as jnp

from sora_jax.models.flash import NO_KEYS, Flash, block_ranges, row_dots

BLOCK = 128
"""Queries and keys of one tile: its logits for a dozen heads stay within a core's cache."""


def forward(q, k, v, q_ids, kv_ids):
    """Segment ids must be contiguous and ascending with padding (0) last."""
    length, dtype = q.shape[1], q.dtype
    tensors = _heads_first(q, k, v)
    out, lse = jax.lax.map(lambda row: _row_forward(*row), (*tensors, _pad(q_ids), _pad(kv_ids)))
    return jnp.swapaxes(out, 1, 2)[:, :length].astype(dtype), lse[:, :, :length]


def backward(q, k, v, q_ids, kv_ids, out, lse, d_out):
    delta = row_dots(out, d_out)
    rows = (*_heads_first(q, k, v, d_out), _pad(q_ids), _pad(kv_ids), _pad(lse, 2, NO_KEYS), _pad(delta, 2))
    gradients = jax.lax.map(lambda row: _row_backward(*row), rows)
    return tuple(
        jnp.swapaxes(gradient, 1, 2)[:, : x.shape[1]].astype(x.dtype)
        for gradient, x in zip(gradients, (q, k, v), strict=True)
    )


BLOCKWISE = Flash(forward, backward)


def _heads_first(*tensors: jax.Array) -> list[jax.Array]:
    """`[B, L, N, K]` → `[B, N, L, K]` in float32, padded to whole blocks."""
    return [jnp.swapaxes(_pad(x.astype(jnp.float32)), 1, 2) for x in tensors]


def _pad(x: jax.Array, axis: int = 1, value: float = 0) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % BLOCK)
    return jnp.pad(x, widths, constant_values=value)


def _tile(x: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis=-1 if x.ndim == 1 else 1)


def _logits(q: jax.Array, k: jax.Array, q_ids: jax.Array, k_ids: jax.Array) -> jax.Array:
    mask = (q_ids[:, None] == k_ids[None, :]) & (k_ids[None, :] > 0)
    return jnp.where(mask, jnp.einsum("NLK,NSK->NLS", q, k), -jnp.inf)


def _row_forward(q, k, v, q_ids, k_ids):
    """Output `[N, L, K]` and the logarithm of each softmax's denominator `[N, L]`."""
    low, high = block_ranges(q_ids, k_ids, BLOCK, BLOCK)

    def query_block(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        q_i, ids_i = _tile(q, i), _tile(q_ids, i)

        def key_block(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            total, denominator, highest = carry
            logits = _logits(q_i, _tile(k, j), ids_i, _tile(k_ids, j))
            new = jnp.maximum(highest, logits.max(-1))
            safe = jnp.where(jnp.isfinite(new), new, 0.0)
            weights, scale = jnp.exp(logits - safe[..., None]), jnp.exp(highest - safe)
            total = total * scale[..., None] + jnp.einsum("NLS,NSK->NLK", weights, _tile(v, j))
            return total, denominator * scale + weights.sum(-1), new

        start = jnp.zeros_like(q_i), jnp.zeros(q_i.shape[:2]), jnp.full(q_i.shape[:2], -jnp.inf)
        total, denominator, highest = jax.lax.fori_loop(low[i], high[i], key_block, start)
        safe = jnp.where(denominator > 0, denominator, 1.0)
        lse = jnp.where(denominator > 0, jnp.log(safe) + highest, NO_KEYS)
        return total / safe[..., None], lse

    out, lse = jax.lax.map(query_block, jnp.arange(q.shape[1] // BLOCK))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape), jnp.moveaxis(lse, 0, 1).reshape(q.shape[:2])


def _row_backward(q, k, v, d_out, q_ids, k_ids, lse, delta):
    """Gradients of q, k and v from the logarithm of the denominator and rowsum(dO * O), both `[N, L]`."""

    def d_logits(i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = _logits(_tile(q, i), _tile(k, j), _tile(q_ids, i), _tile(k_ids, j))
        weights = jnp.exp(logits - _tile(lse, i)[..., None])
        d_weights = jnp.einsum("NLK,NSK->NLS", _tile(d_out, i), _tile(v, j))
        return weights, weights * (d_weights - _tile(delta, i)[..., None])

    def d_query(i, low, high):
        def add(j, total):
            return total + jnp.einsum("NLS,NSK->NLK", d_logits(i, j)[1], _tile(k, j))

        return jax.lax.fori_loop(low, high, add, jnp.zeros_like(_tile(q, i)))

    def d_key_value(j, low, high):
        def add(i, totals):
            weights, d = d_logits(i, j)
            d_k = totals[0] + jnp.einsum("NLS,NLK->NSK", d, _tile(q, i))
            return d_k, totals[1] + jnp.einsum("NLS,NLK->NSK", weights, _tile(d_out, i))

        zeros = jnp.zeros_like(_tile(k, j))
        return jax.lax.fori_loop(low, high, add, (zeros, zeros))

    d_q = _over_blocks(d_query, q, *block_ranges(q_ids, k_ids, BLOCK, BLOCK))
    d_k, d_v = _over_blocks(d_key_value, k, *block_ranges(k_ids, q_ids, BLOCK, BLOCK))
    return d_q, d_k, d_v


def _over_blocks(fn, like: jax.Array, low: jax.Array, high: jax.Array):
    """`fn(block, low, high)` for every block, its `[N, BLOCK, K]` results joined to the shape of `like`."""
    out = jax.lax.map(lambda args: fn(*args), (jnp.arange(like.shape[1] // BLOCK), low, high))
    return jax.tree.map(functools.partial(_join, like=like), out)


def _join(x: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 0, 1).reshape(like.shape)
