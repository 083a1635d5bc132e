"""Attention on NVIDIA GPUs: FlashAttention-2 (Dao 2023, algorithms 1 and 2) in Pallas, compiled by Triton.

Each program computes one block of queries (or, for dk and dv, of keys) of one head, and loops over the range of the
other side's blocks that hold the same segments, which is found beforehand from the row's segment ids: the work follows
the sum of squared segment lengths. Inside a block the ids mask. Two backward kernels, so that nothing is added up in
memory. Rows are padded to whole blocks and heads to a power of two of at least 16, which is what Triton's tiles are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from sora_jax.models.flash import NO_KEYS, Flash, block_ranges, row_dots

BLOCK_Q, BLOCK_K = 128, 64
"""Queries that a program of the forward pass holds, and keys of one product. Backward, both are BLOCK_K."""
MASKED = -2e38
LOG2_E = float(np.log2(np.e))  # the hardware's exponential is of base 2


def triton(block_q: int = BLOCK_Q, block_k: int = BLOCK_K, interpret: bool = False) -> Flash:
    """The kernel; `block_q` must be a multiple of `block_k`. `interpret` computes it without a GPU, slowly."""
    return Flash(
        functools.partial(_forward, block_q, block_k, interpret),
        functools.partial(_backward, block_q, block_k, interpret),
    )


def _forward(block_q: int, block_k: int, interpret: bool, q, k, v, q_ids, kv_ids):
    (batch, length, heads, width), dtype = q.shape, q.dtype
    q, k, v = (_pad_width(x) for x in (q, k, v))
    (q, q_ids), (k, v, kv_ids) = _pad(block_q, q, q_ids), _pad(block_k, k, v, kv_ids)
    call = pl.pallas_call(
        functools.partial(_forward_kernel, block_k=block_k),
        grid=(q.shape[1] // block_q, batch, heads),
        in_specs=[
            *(_own(q, block_q), _whole(k), _whole(v), _own(q_ids, block_q), _whole(kv_ids)),
            *(NUMBER_OF_BLOCK, NUMBER_OF_BLOCK),
        ],
        out_specs=[_own(q, block_q), _own_of_head(block_q)],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, dtype),
            jax.ShapeDtypeStruct((batch, heads, q.shape[1]), jnp.float32),
        ],
        compiler_params=_compiler_params(width),
        interpret=interpret,
        name="flash_forward",
    )
    out, lse = call(q, k, v, q_ids, kv_ids, *_ranges(q_ids, kv_ids, block_q, block_k))
    return out[:, :length, :, :width], lse[:, :, :length]


def _forward_kernel(q_ref, k_ref, v_ref, q_ids_ref, kv_ids_ref, low_ref, high_ref, out_ref, lse_ref, *, block_k: int):
    """`[block_q, K]` queries and the row's `[S, K]` keys and values, of one head."""
    q, q_ids = q_ref[...], q_ids_ref[...]

    def add(j, carry):
        total, denominator, highest = carry
        keys = pl.ds(j * block_k, block_k)
        v = v_ref[keys, :]
        logits = _logits(q, k_ref[keys, :], q_ids, kv_ids_ref[keys])
        new = jnp.maximum(highest, jnp.max(logits, axis=1))
        weights, scale = jnp.exp2(logits - new[:, None]), jnp.exp2(highest - new)
        total = total * scale[:, None] + _dot(weights.astype(v.dtype), v)
        return total, denominator * scale + jnp.sum(weights, axis=1), new

    rows = q.shape[0]
    start = jnp.zeros(q.shape, jnp.float32), jnp.zeros(rows), jnp.full(rows, NO_KEYS * LOG2_E)
    total, denominator, highest = jax.lax.fori_loop(low_ref[...], high_ref[...], add, start)
    safe = jnp.where(denominator > 0, denominator, 1.0)
    out_ref[...] = (total / safe[:, None]).astype(out_ref.dtype)
    lse_ref[...] = (highest + jnp.log2(safe)) / LOG2_E


def _backward(block_q: int, block: int, interpret: bool, q, k, v, q_ids, kv_ids, out, lse, d_out):
    shapes, width = (q.shape, k.shape, v.shape), q.shape[3]
    delta = row_dots(out, d_out)
    q, k, v, d_out = (_pad_width(x) for x in (q, k, v, d_out.astype(q.dtype)))
    (q, d_out, q_ids), (k, v, kv_ids) = _pad(block, q, d_out, q_ids), _pad(block, k, v, kv_ids)
    at_ends = [(0, 0), (0, 0), (0, -lse.shape[2] % block)]
    delta, lse = jnp.pad(delta, at_ends), jnp.pad(lse, at_ends, constant_values=NO_KEYS)
    (batch, length, heads, _), num_keys = q.shape, k.shape[1]
    common = dict(compiler_params=_compiler_params(width), interpret=interpret)
    ranges = [NUMBER_OF_BLOCK, NUMBER_OF_BLOCK]
    d_q = pl.pallas_call(
        functools.partial(_d_query_kernel, block=block),
        grid=(length // block, batch, heads),
        in_specs=[
            *(_own(q, block), _own(d_out, block), _own(q_ids, block), _own_of_head(block), _own_of_head(block)),
            *(_whole(k), _whole(v), _whole(kv_ids), *ranges),
        ],
        out_specs=_own(q, block),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        name="flash_d_query",
        **common,
    )(q, d_out, q_ids, lse, delta, k, v, kv_ids, *_ranges(q_ids, kv_ids, block, block))
    d_k, d_v = pl.pallas_call(
        functools.partial(_d_key_value_kernel, block=block),
        grid=(num_keys // block, batch, heads),
        in_specs=[
            *(_own(k, block), _own(v, block), _own(kv_ids, block), _whole(q), _whole(d_out), _whole(q_ids)),
            *(_whole_of_head(length), _whole_of_head(length), *ranges),
        ],
        out_specs=[_own(k, block), _own(v, block)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        name="flash_d_key_value",
        **common,
    )(k, v, kv_ids, q, d_out, q_ids, lse, delta, *_ranges(kv_ids, q_ids, block, block))
    return tuple(x[:, : s[1], :, :width] for x, s in zip((d_q, d_k, d_v), shapes, strict=True))


def _d_query_kernel(
    q_ref, d_out_ref, q_ids_ref, lse_ref, delta_ref, k_ref, v_ref, kv_ids_ref, low_ref, high_ref, d_q_ref, *, block: int
):
    q, d_out, q_ids, lse, delta = (r[...] for r in (q_ref, d_out_ref, q_ids_ref, lse_ref, delta_ref))

    def add(j, d_q):
        keys = pl.ds(j * block, block)
        k = k_ref[keys, :]
        _, d_logits = _weights(q, d_out, q_ids, lse, delta, k, v_ref[keys, :], kv_ids_ref[keys])
        return d_q + _dot(d_logits.astype(k.dtype), k)

    d_q = jax.lax.fori_loop(low_ref[...], high_ref[...], add, jnp.zeros(q.shape, jnp.float32))
    d_q_ref[...] = d_q.astype(d_q_ref.dtype)


def _d_key_value_kernel(
    k_ref, v_ref, kv_ids_ref, q_ref, d_out_ref, q_ids_ref, lse_ref, delta_ref, low_ref, high_ref, d_k_ref, d_v_ref,
    *, block: int,
):  # fmt: skip
    k, v, kv_ids = k_ref[...], v_ref[...], kv_ids_ref[...]

    def add(i, carry):
        d_k, d_v = carry
        rows = pl.ds(i * block, block)
        q, d_out = q_ref[rows, :], d_out_ref[rows, :]
        weights, d_logits = _weights(q, d_out, q_ids_ref[rows], lse_ref[rows], delta_ref[rows], k, v, kv_ids)
        return d_k + _dot(d_logits.astype(q.dtype).T, q), d_v + _dot(weights.astype(d_out.dtype).T, d_out)

    zeros = jnp.zeros(k.shape, jnp.float32)
    d_k, d_v = jax.lax.fori_loop(low_ref[...], high_ref[...], add, (zeros, zeros))
    d_k_ref[...], d_v_ref[...] = d_k.astype(d_k_ref.dtype), d_v.astype(d_v_ref.dtype)


def _weights(q, d_out, q_ids, lse, delta, k, v, kv_ids):
    """The softmax's weights of one tile, and the gradients of its logits, both `[queries, keys]` in float32."""
    weights = jnp.exp2(_logits(q, k, q_ids, kv_ids) - lse[:, None] * LOG2_E)
    return weights, weights * (_dot(d_out, v.T) - delta[:, None])


def _logits(q, k, q_ids, kv_ids):
    """In units of log 2, where the segments are the same."""
    mask = (q_ids[:, None] == kv_ids[None, :]) & (kv_ids[None, :] > 0)
    return jnp.where(mask, _dot(q, k.T) * LOG2_E, MASKED)


def _dot(a, b):
    """In float32; float32 factors are not rounded to TF32."""
    return pallas_triton.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


# The grid is (block, row, head). What is `own` is the block of a program, what is `whole` its row's.
NUMBER_OF_BLOCK = pl.BlockSpec((None, None), lambda i, b, h: (b, i))


def _own(x: jax.Array, block: int) -> pl.BlockSpec:
    """Of `[B, L, N, K]` the `[block, K]` of a head; of ids `[B, L]` the `[block]`."""
    if x.ndim == 2:
        return pl.BlockSpec((None, block), lambda i, b, h: (b, i))
    return pl.BlockSpec((None, block, None, x.shape[3]), lambda i, b, h: (b, i, h, 0))


def _whole(x: jax.Array) -> pl.BlockSpec:
    if x.ndim == 2:
        return pl.BlockSpec((None, x.shape[1]), lambda i, b, h: (b, 0))
    return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda i, b, h: (b, 0, h, 0))


def _own_of_head(block: int) -> pl.BlockSpec:
    """Of `[B, N, L]` the `[block]` of a head."""
    return pl.BlockSpec((None, None, block), lambda i, b, h: (b, h, i))


def _whole_of_head(length: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, length), lambda i, b, h: (b, h, 0))


def _compiler_params(width: int) -> pallas_triton.CompilerParams:
    return pallas_triton.CompilerParams(num_warps=4 if width <= 64 else 8, num_stages=2)


def _ranges(ids: jax.Array, other: jax.Array, block: int, other_block: int) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(functools.partial(block_ranges, block=block, other_block=other_block))(ids, other)


def _pad(block: int, *tensors: jax.Array) -> list[jax.Array]:
    """Dim 1 to whole blocks."""
    return [jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2)) for x in tensors]


def _pad_width(x: jax.Array) -> jax.Array:
    width = max(16, pl.next_power_of_2(x.shape[3]))
    return jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[3])])
