"""Rows whose tokens are spread over devices: the same attention as on one, and only the exchange that it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from data_pipeline.errors import UserError
from sora_jax.models.attention import attention, reference_attention
from sora_jax.models.context_parallel import spread_attention
from sora_jax.models.splash import splash
from sora_jax.parallel import check_tokens, make_mesh

LENGTH, TEXT = 96, 20
EXCHANGES = ("all-to-all", "collective-permute", "all-gather", "all-reduce")


def packed(num_heads: int):
    """Three rows: segments that cross the borders of the parts, one for the whole row, and parts of padding only."""
    rng = np.random.default_rng(0)
    ids = np.zeros((2, LENGTH), np.int32)
    ids[0, :90] = np.repeat(np.arange(1, 8), [5, 30, 1, 14, 20, 8, 12])
    ids[1, :40] = 1
    text_ids = np.zeros((2, TEXT), np.int32)
    text_ids[0, :18] = np.repeat(np.arange(1, 7), 3)  # the seventh clip has no caption
    text_ids[1, :5] = 1
    shape = (2, LENGTH, num_heads, 8)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    return tuple(map(jnp.asarray, (q, k, v, ids, text_ids)))


def gradients_and_value(fn, q, k, v):
    """Lowered and compiled; call the result with q, k, v."""
    weight = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)
    return jax.jit(jax.value_and_grad(lambda *qkv: jnp.sum(fn(*qkv) * weight), (0, 1, 2))).lower(q, k, v).compile()


def assert_same(ours, oracle):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kernel, num_heads, exchange",
    [
        ("blockwise", 4, {"all-to-all"}),
        ("blockwise", 3, {"collective-permute"}),
        ("blockwise", 6, {"all-to-all", "collective-permute"}),  # two groups of two, three heads each
        ("reference", 4, {"all-gather"}),
    ],
)
def test_a_spread_row_attends_to_itself_by_heads_or_round_the_ring(kernel, num_heads, exchange):
    q, k, v, ids, _ = packed(num_heads)
    mesh = make_mesh({"data": 2, "context": 4})
    with jax.set_mesh(mesh):
        q, k, v = (jax.device_put(x, jax.NamedSharding(mesh, P("data", "context"))) for x in (q, k, v))
        compiled = gradients_and_value(lambda *qkv: attention(*qkv, ids, ids, kernel), q, k, v)
        ours = compiled(q, k, v)
    assert {e for e in EXCHANGES[:3] if e in compiled.as_text()} == exchange
    oracle = gradients_and_value(lambda *qkv: reference_attention(*qkv, ids, ids), *packed(num_heads)[:3])
    assert_same(ours, oracle(*packed(num_heads)[:3]))


def test_text_is_whole_on_every_device_and_needs_no_exchange():
    q, k, v, ids, text_ids = packed(2)
    k, v = k[:, :TEXT], v[:, :TEXT]

    def cross(q, k, v):
        return attention(q, k, v, ids, text_ids, "blockwise", dims=("token", "text"))

    mesh = make_mesh({"context": 8})
    with jax.set_mesh(mesh):
        forward = jax.jit(cross).lower(q, k, v).compile()
        ours = gradients_and_value(cross, q, k, v)(q, k, v)
    assert not [e for e in EXCHANGES[:2] if e in forward.as_text()]
    assert_same(ours, gradients_and_value(lambda *qkv: reference_attention(*qkv, ids, text_ids), q, k, v)(q, k, v))


@pytest.mark.parametrize("num_heads", [2, 1])
def test_splash_can_be_spread(num_heads):
    q, k, v, ids, _ = packed(num_heads)
    mesh = make_mesh({"context": 2}, jax.devices()[:2])
    spread = jax.shard_map(
        lambda *qkv: spread_attention(splash(128, interpret=True), *qkv, ids, ids),
        mesh=mesh,
        in_specs=(P(None, "context"),) * 3,
        out_specs=P(None, "context"),
        check_vma=False,
    )
    ours = gradients_and_value(spread, q, k, v)(q, k, v)
    assert_same(ours, gradients_and_value(lambda *qkv: reference_attention(*qkv, ids, ids), q, k, v)(q, k, v))


def test_a_bias_is_spread_with_the_queries():
    q, k, v, ids, _ = packed(2)
    bias = jnp.asarray(np.random.default_rng(3).standard_normal((1, 2, LENGTH, LENGTH)).astype(np.float32))
    with jax.set_mesh(make_mesh({"data": 2, "context": 2, "tensor": 2})):
        ours = jax.jit(attention)(q, k, v, ids, ids, bias=bias)
    np.testing.assert_allclose(ours, reference_attention(q, k, v, ids, ids, bias), rtol=1e-5, atol=1e-5)


def test_a_row_that_the_axis_cannot_split_is_an_error_with_the_nearest_legal_length():
    check_tokens({"data": 2}, 4097)
    check_tokens({"context": 4}, 4096)
    with pytest.raises(
        UserError, match="row_tokens=4098 does not divide over context=4 .* nearest legal value is 4096"
    ):
        check_tokens({"context": 4}, 4098)
