"""Attention on TPU: JAX's splash kernels, told inside the step which blocks of keys a block of queries needs.

Splash goes through a table of blocks (`MaskInfo`) that is usually made from a mask known beforehand. Ours is made from
the row's segment ids: two blocks meet iff the ranges of their ids overlap, and `SegmentIds` masks within those that do.
A step of the grid takes time even where it computes nothing, and most pairs of blocks of a packed row do not meet. So
the table lists only the blocks that do, and the kernel is compiled for a few widths of the table, of which each row
takes the narrowest that holds its own: the work follows the sum of squared segment lengths.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_lib
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Bool, Float, Int

from sora_jax.models.flash import NO_KEYS, Flash, row_dots

LANES = 128
BLOCK, COMPUTE = 1024, 512
"""Queries and keys of one tile, at most, and keys of one product: its float32 logits take 2 MiB of vector memory."""
LAYOUT = splash_lib.QKVLayout.HEAD_DIM_MINOR
MAX_BLOCKS = 512 * 512
"""Pairs of blocks that one table lists: scalar memory is scarce (0.8 MB here). Longer rows, of more than half a million
tokens, send their queries through the kernel in pieces."""
NARROW = 8
"""A table of so many columns is not worth a narrower one."""


def splash(block: int = BLOCK, interpret: bool = False) -> Flash:
    """The kernel with tiles of at most `block` (a multiple of 128); `interpret` computes it without a TPU, slowly."""
    return Flash(
        functools.partial(_forward, block, interpret),
        functools.partial(_backward, block, interpret),
    )


def active_blocks(q_ids: Int[Array, " L"], kv_ids: Int[Array, " S"], q_block: int, kv_block: int) -> Bool[Array, "I J"]:
    """Which blocks of queries and of keys have segments in common, by the range of ids in each."""
    q_first, q_last = _id_range(q_ids, q_block)
    kv_first, kv_last = _id_range(kv_ids, kv_block)
    return (q_first[:, None] <= kv_last[None, :]) & (kv_first[None, :] <= q_last[:, None])


def _id_range(ids: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Lowest and highest id of each block; of one that is all padding, a range that nothing overlaps."""
    blocks = ids.reshape(-1, block)
    return jnp.min(jnp.where(blocks == 0, jnp.iinfo(jnp.int32).max, blocks), axis=1), jnp.max(blocks, axis=1)


def widths(num_blocks: int) -> list[int]:
    """The widths of tables that kernels are compiled for, ascending: all blocks, a fourth of them, and so on."""
    found = [num_blocks]
    while found[-1] > NARROW:
        found.append(-(-found[-1] // 4))
    return found[::-1]


def in_narrowest(active: Bool[Array, "I J"], compute: Callable[[jax.Array, jax.Array], Any]) -> Any:
    """`compute(fetched, computed)`, both `[I, width]`: which column each slot of a row fetches, and whether it is
    computed, not 0. A row's slots are its active columns, first to last, in the narrowest of `widths` that holds them.
    """
    counts = jnp.sum(active, axis=1, dtype=jnp.int32)
    columns = jnp.argsort(~active, axis=1, stable=True)

    def with_width(width: int):
        slots = jnp.arange(width)
        last = jnp.clip(counts - 1, 0)[:, None]  # while nothing is computed, nothing else is fetched
        fetched = jnp.take_along_axis(columns, jnp.minimum(slots, last), axis=1)
        computed = 2 * (slots < counts[:, None])  # 2: no mask but the segments'
        return compute(fetched.astype(jnp.int16), computed.astype(jnp.int8))

    choices = widths(active.shape[1])
    index = jnp.searchsorted(jnp.asarray(choices), jnp.max(counts))
    return jax.lax.switch(index, [functools.partial(with_width, w) for w in choices])


def _num_pieces(q_length: int, kv_length: int, block: int) -> int:
    """How many pieces of the queries have tables of at most MAX_BLOCKS each."""
    q_blocks, kv_blocks = (math.ceil(length / block) for length in (q_length, kv_length))
    return math.ceil(q_blocks / max(1, MAX_BLOCKS // kv_blocks))


def _pieces(pieces: int, block: int, *tensors: jax.Array) -> list[jax.Array]:
    """`[B, L, …]` → `[pieces, B, l, …]`, padded; a piece is whole tiles."""
    part = -(-tensors[0].shape[1] // (pieces * block)) * block
    return [jnp.stack(jnp.split(_pad(x, pieces * part), pieces, axis=1)) for x in tensors]


def _joined(x: jax.Array, length: int, axis: int) -> jax.Array:
    """The pieces, `[pieces, …]`, one after another along `axis` of each, without what was padded."""
    return jax.lax.slice_in_dim(jnp.concatenate(list(x), axis=axis), 0, length, axis=axis)


def _tile(length: int, block: int) -> int:
    """The tile of at most `block` that pads a row least; above COMPUTE one that has halves of whole lanes."""
    size = -(-length // -(-length // block))
    multiple = LANES if size <= COMPUTE else 2 * LANES
    return -(-size // multiple) * multiple


def _compute_tile(block: int) -> int:
    """The keys of one product, of a tile of `block` keys."""
    return block if block <= COMPUTE else block // 2


def _pad(x: jax.Array, block: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, widths)


def _heads_first(block: int, *tensors: jax.Array) -> list[jax.Array]:
    """`[B, L, N, K]` → `[B, N, L, K]`, padded to whole tiles."""
    return [jnp.swapaxes(_pad(x, block), 1, 2) for x in tensors]


def _segments(q_ids: jax.Array, kv_ids: jax.Array) -> splash_lib.SegmentIds:
    """Padding of queries and of keys get different ids, so that they do not meet."""
    return splash_lib.SegmentIds(jnp.where(q_ids == 0, -1, q_ids), kv_ids)


def _sinks(num_heads: int) -> Float[Array, " N"]:
    """A logit without a value that every query sees, too low to weigh anything beside a key. A query without keys has
    it alone: zeros, forward and backward, where the kernel would otherwise give NaN or the mean of its block."""
    return jnp.full(num_heads, NO_KEYS, jnp.float32)


def _options(interpret: bool) -> dict[str, Any]:
    return dict(
        is_mqa=False,
        mask_value=splash_lib.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        mask_function=None,
        interpret=interpret,
    )


def _forward(block: int, interpret: bool, q, k, v, q_ids, kv_ids):
    pieces = _num_pieces(q.shape[1], k.shape[1], block)
    if pieces > 1:
        one = lambda piece: _forward(block, interpret, piece[0], k, v, piece[1], kv_ids)  # noqa: E731
        out, lse = jax.lax.map(one, tuple(_pieces(pieces, block, q, q_ids)))
        return _joined(out, q.shape[1], axis=1), _joined(lse, q.shape[1], axis=2)
    length, q_block, kv_block = q.shape[1], _tile(q.shape[1], block), _tile(k.shape[1], block)
    sizes = splash_lib.BlockSizes(q_block, kv_block, _compute_tile(kv_block))

    def row(args):
        q, k, v, q_ids, kv_ids = args

        def compute(fetched, computed):
            kernel = splash_lib.SplashAttentionKernel(
                MaskInfo(fetched[None], None, computed[None], None, None),
                None,
                None,
                block_sizes=sizes,
                save_residuals=True,
                residual_checkpoint_name=None,
                **_options(interpret),
            )
            out, (lse,) = kernel(q, k, v, _segments(q_ids, kv_ids), _sinks(q.shape[0]))
            return out, lse

        return in_narrowest(active_blocks(q_ids, kv_ids, q_block, kv_block), compute)

    ids = _pad(q_ids, q_block), _pad(kv_ids, kv_block)
    out, lse = jax.lax.map(row, (*_heads_first(q_block, q), *_heads_first(kv_block, k, v), *ids))
    return jnp.swapaxes(out, 1, 2)[:, :length], lse[:, :, :length]


def _backward(block: int, interpret: bool, q, k, v, q_ids, kv_ids, out, lse, d_out):
    """Two kernels, for dq and for dk and dv: the fused one keeps a partial dq for every block of keys, 16 GiB at 65,536
    tokens of 16 heads. Splash's own vjp knows only a denominator that it computed itself; ours may be that over more
    keys than these."""
    pieces = _num_pieces(q.shape[1], k.shape[1], block)
    if pieces > 1:

        def one(sums, piece):
            d_q, *d_kv = _backward(block, interpret, piece[0], k, v, piece[1], kv_ids, *piece[2:])
            return [total + x.astype(jnp.float32) for total, x in zip(sums, d_kv, strict=True)], d_q

        # A padded query belongs to no segment, whatever its `lse`.
        parts = _pieces(pieces, block, q, q_ids, out, jnp.swapaxes(lse, 1, 2), d_out)
        parts[3] = jnp.swapaxes(parts[3], 2, 3)
        (d_k, d_v), d_q = jax.lax.scan(one, [jnp.zeros(x.shape, jnp.float32) for x in (k, v)], parts)
        return _joined(d_q, q.shape[1], axis=1), d_k.astype(k.dtype), d_v.astype(v.dtype)
    q_block, kv_block = _tile(q.shape[1], block), _tile(k.shape[1], block)
    options = dict(_options(interpret), q_layout=LAYOUT, k_layout=LAYOUT, v_layout=LAYOUT)

    def row(args):
        q, d_out, k, v, q_ids, kv_ids, lse, delta = args
        common = (q, k, v, _segments(q_ids, kv_ids), None, lse, d_out, delta)

        def d_query(fetched, computed):
            info = MaskInfo(fetched[None], None, computed[None], None, None)
            return splash_lib._splash_attention_bwd_dq(*common, bq=q_block, bkv=kv_block, mask_info=info, **options)

        def d_key_value(fetched, computed):
            info = MaskInfo(fetched.T[None], None, computed.T[None], None, None)
            sizes = dict(bq=q_block, bkv=kv_block, bkv_compute=_compute_tile(kv_block), use_fused_bwd_kernel=False)
            return splash_lib._splash_attention_bwd_dkv(*common, mask_info=info, **sizes, **options)[1:]

        active = active_blocks(q_ids, kv_ids, q_block, kv_block)
        return in_narrowest(active, d_query), *in_narrowest(active.T, d_key_value)

    at_ends = [(0, 0), (0, 0), (0, -q.shape[1] % q_block)]
    delta = jnp.pad(row_dots(out, d_out), at_ends)
    lse = jnp.pad(lse, at_ends, constant_values=NO_KEYS)
    tensors = *_heads_first(q_block, q, d_out.astype(q.dtype)), *_heads_first(kv_block, k, v)
    gradients = jax.lax.map(row, (*tensors, _pad(q_ids, q_block), _pad(kv_ids, kv_block), lse, delta))
    return tuple(jnp.swapaxes(g, 1, 2)[:, : x.shape[1]] for g, x in zip(gradients, (q, k, v), strict=True))
