"""The attention seam: kernels equal the oracle, segments never see each other, work follows the segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.models import blockwise
from sora_jax.models.attention import attention, reference_attention
from sora_jax.parallel import make_mesh


def packed_ids(lengths: list[int], size: int) -> np.ndarray:
    ids = np.zeros(size, np.int32)
    ids[: sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return ids


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    q_ids = np.stack([packed_ids([300, 40, 500], 900), packed_ids([10, 600], 900)])
    kv_ids = np.stack([packed_ids([7, 3, 290], 310), packed_ids([300, 5], 310)])
    q, k, v = (rng.standard_normal((2, n, 2, 8)).astype(np.float32) for n in (900, 310, 310))
    return tuple(map(jnp.asarray, (q, k, v, q_ids, kv_ids)))


def test_blockwise_equals_reference_in_values_and_gradients(rows):
    q, k, v, q_ids, kv_ids = rows
    weight = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)

    def loss(fn, *qkv):
        return jnp.sum(fn(*qkv, q_ids, kv_ids) * weight)

    np.testing.assert_allclose(blockwise.blockwise_attention(*rows), reference_attention(*rows), atol=2e-6, rtol=1e-5)
    kernels = (blockwise.blockwise_attention, reference_attention)
    grads = [jax.grad(lambda *a, fn=fn: loss(fn, *a), (0, 1, 2))(q, k, v) for fn in kernels]
    for ours, oracle in zip(*grads, strict=True):
        np.testing.assert_allclose(ours, oracle, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["reference", "blockwise"])
def test_another_segment_has_no_influence_and_padding_is_zero(rows, kernel):
    q, k, v, q_ids, kv_ids = rows

    def first_segment(v):
        return jnp.sum(attention(q, k, v, q_ids, kv_ids, kernel)[0, :300] ** 2)

    gradient = np.asarray(jax.grad(first_segment)(v))
    assert np.all(gradient[1] == 0) and np.all(gradient[0, 7:] == 0) and np.any(gradient[0, :7] != 0)
    assert np.all(np.asarray(attention(q, k, v, q_ids, kv_ids, kernel))[0, 840:] == 0)


def test_devices_compute_their_own_rows_and_heads(rows):
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])):
        sharded = jax.jit(attention, static_argnums=5)(*rows, "blockwise")
        text = jax.jit(attention, static_argnums=5).lower(*rows, "blockwise").compile().as_text()
    np.testing.assert_allclose(sharded, reference_attention(*rows), atol=2e-6, rtol=1e-5)
    assert "all-gather" not in text and "all-reduce" not in text


def test_work_follows_the_segments():
    ids = jnp.asarray(packed_ids([512] * 4, 2048))
    low, high = blockwise._key_ranges(ids, ids)
    assert int(jnp.sum(high - low)) == 4 * 4 * 4  # four segments of four blocks each, not sixteen blocks squared


def test_unknown_kernel_names_the_valid_ones(rows):
    with pytest.raises(UserError, match="blockwise, reference"):
        attention(*rows, kernel="flash")
