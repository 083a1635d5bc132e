"""Attention of a row to itself, when each device along the mesh axis `context` holds a part of the row's tokens.

Ulysses (Jacobs et al. 2023) as far as the heads divide: one all-to-all among `gcd(heads, devices)` neighbours gives
each all of their tokens of some heads, another takes the result back. Where that is the whole axis, a kernel sees a
whole row. Otherwise ring attention (Liu et al. 2023) among the groups (both together: Fang & Zhao 2024): keys and
values travel round the ring, and what each part of them gives is merged by the softmax's denominators. The functions
here run inside `shard_map`. Tensors hold a device's own tokens; segment ids, small, are whole everywhere.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sora_jax.models.flash import NO_KEYS, Flash, flash_attention, scaled
from sora_jax.parallel import CONTEXT


def spread_attention(
    kernel: Flash,
    q: Float[Array, "B l N K"],
    k: Float[Array, "B l N K"],
    v: Float[Array, "B l N K"],
    q_segment_ids: Int[Array, "B L"],
    kv_segment_ids: Int[Array, "B L"],
) -> Float[Array, "B l N K"]:
    """`kernel` on this device's tokens of a row; the other devices of `context` hold the others, in order."""
    size = jax.lax.axis_size(CONTEXT)
    group = math.gcd(q.shape[2], size)
    if group == 1:
        return ring_attention(kernel, q, k, v, q_segment_ids, kv_segment_ids)
    # Groups of neighbours, so that a device holds a contiguous part of the row again. All of them: no groups.
    groups = None if group == size else [list(range(i, i + group)) for i in range(0, size, group)]
    exchange = functools.partial(jax.lax.all_to_all, axis_name=CONTEXT, axis_index_groups=groups, tiled=True)
    heads = exchange(jnp.stack([q, k, v]), split_axis=3, concat_axis=2)
    attend = flash_attention if group == size else functools.partial(ring_attention, group=group)
    return exchange(attend(kernel, *heads, q_segment_ids, kv_segment_ids), split_axis=1, concat_axis=2)


def ring_attention(kernel: Flash, q, k, v, q_ids, kv_ids, group: int = 1):
    """Any number of heads. The derivative goes round the ring too, and sees one part of the keys at a time.

    Each `group` neighbours hold the same part of the row (of different heads): the ring goes from group to group.
    """
    return _ring(kernel, group, scaled(q), k, v, q_ids, kv_ids)


def merge(
    out: Float[Array, "B L N K"], lse: Float[Array, "B N L"], more: Float[Array, "B L N K"], lse_more: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attention over two sets of keys from that over each, in float32."""
    total = jnp.logaddexp(lse, lse_more)
    weights = [jnp.swapaxes(jnp.exp(x - total), 1, 2)[..., None] for x in (lse, lse_more)]
    return out * weights[0] + more.astype(jnp.float32) * weights[1], total


def _pass_on(group: int, tree):
    """To the next group of the ring, from the one before."""
    size = jax.lax.axis_size(CONTEXT)
    return jax.tree.map(lambda x: jax.lax.ppermute(x, CONTEXT, [(i, (i + group) % size) for i in range(size)]), tree)


def _part(ids: jax.Array, group: int, steps_back: jax.Array | int, length: int) -> jax.Array:
    """The ids of the tokens that the group so many steps back holds."""
    index = (jax.lax.axis_index(CONTEXT) // group - steps_back) % (jax.lax.axis_size(CONTEXT) // group)
    return jax.lax.dynamic_slice_in_dim(ids, index * length, length, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(kernel: Flash, group: int, q, k, v, q_ids, kv_ids):
    return _forward(kernel, group, q, k, v, q_ids, kv_ids)[0]


def _forward(kernel: Flash, group: int, q, k, v, q_ids, kv_ids):
    length = q.shape[1]
    own = _part(q_ids, group, 0, length)

    def step(i, carry):
        out, lse, k, v = carry
        part = kernel.forward(q, k, v, own, _part(kv_ids, group, i, length))
        # The exchange does not wait for the kernel. The last one is for nothing, and as hidden as the others.
        return *merge(out, lse, *part), *_pass_on(group, (k, v))

    start = jnp.zeros(q.shape, jnp.float32), jnp.full((q.shape[0], q.shape[2], length), NO_KEYS)
    out, lse, _, _ = jax.lax.fori_loop(0, jax.lax.axis_size(CONTEXT) // group, step, (*start, k, v))
    return out.astype(q.dtype), lse


def _save(kernel: Flash, group: int, q, k, v, q_ids, kv_ids):
    out, lse = _forward(kernel, group, q, k, v, q_ids, kv_ids)
    return out, (q, k, v, q_ids, kv_ids, out, lse)


def _gradients(kernel: Flash, group: int, saved, d_out):
    q, k, v, q_ids, kv_ids, out, lse = saved
    length = q.shape[1]
    own = _part(q_ids, group, 0, length)

    def step(i, carry):
        d_q, k, v, d_k, d_v = carry
        more = kernel.backward(q, k, v, own, _part(kv_ids, group, i, length), out, lse, d_out)
        d_q, d_k, d_v = (x + y.astype(jnp.float32) for x, y in zip((d_q, d_k, d_v), more, strict=True))
        return d_q, *_pass_on(group, (k, v, d_k, d_v))  # after the whole round they are where they belong

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    start = zeros[0], k, v, *zeros[1:]
    d_q, _, _, d_k, d_v = jax.lax.fori_loop(0, jax.lax.axis_size(CONTEXT) // group, step, start)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_ring.defvjp(_save, _gradients)
