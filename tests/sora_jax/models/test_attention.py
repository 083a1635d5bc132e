"""The attention seam: kernels equal the oracle, segments never see each other, work follows the segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from data_pipeline.errors import UserError
from sora_jax.models import splash
from sora_jax.models.attention import attention, choose_kernel, reference_attention
from sora_jax.models.blockwise import BLOCKWISE
from sora_jax.models.flash import Flash, block_ranges, flash_attention
from sora_jax.models.triton import triton
from sora_jax.parallel import make_mesh

INTERPRETED = {
    "blockwise": BLOCKWISE,
    "splash": splash.splash(block=128, interpret=True),
    "triton": triton(block_q=128, block_k=64, interpret=True),
}
"""Each kernel as it runs here, with small blocks, so that short rows have several."""


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


def values_and_gradients(fn, q, k, v, *ids):
    """A jitted function's output and the gradients of its sum with random weights."""
    weight = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)

    def loss(q, k, v):
        out = fn(q, k, v, *ids)
        return jnp.sum(out * weight), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


def assert_equals_reference(kernel: Flash, rows, atol: float, rtol: float):
    ours = values_and_gradients(lambda *a: flash_attention(kernel, *a), *rows)
    oracle = values_and_gradients(reference_attention, *(x.astype(jnp.float32) for x in rows[:3]), *rows[3:])
    for x, y in zip(ours, oracle, strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=rtol)


@pytest.mark.parametrize("kernel", INTERPRETED)
def test_cross_attention_equals_reference_in_values_and_gradients(rows, kernel):
    assert_equals_reference(INTERPRETED[kernel], rows, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("kernel", INTERPRETED)
def test_self_attention_equals_reference_in_float32_and_bfloat16(rows, kernel):
    q, _, _, ids, _ = rows
    k, v = q[:, ::-1] + 1, q * 2  # blocks that are all padding, segments that end inside of a block, and one row's only
    assert_equals_reference(INTERPRETED[kernel], (q, k, v, ids, ids), atol=5e-6, rtol=1e-4)
    low = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
    assert_equals_reference(INTERPRETED[kernel], (*low, ids, ids), atol=0.1, rtol=0.03)


def test_splash_takes_a_table_of_its_own_width_for_each_row():
    """Eleven blocks: the first row needs three columns of the table at most, the second one all."""
    rng = np.random.default_rng(2)
    ids = jnp.asarray(np.stack([packed_ids([100] * 13, 1310), packed_ids([1300], 1310)]))
    q, k, v = (jnp.asarray(rng.standard_normal((2, 1310, 1, 8)).astype(np.float32)) for _ in range(3))
    assert_equals_reference(INTERPRETED["splash"], (q, k, v, ids, ids), atol=5e-6, rtol=1e-4)


def test_splash_sends_queries_in_pieces_where_a_table_would_be_too_large(rows, monkeypatch):
    """8 blocks of queries by 3 of keys, at most 9 pairs in a table: three pieces, the last one shorter."""
    monkeypatch.setattr(splash, "MAX_BLOCKS", 9)
    assert splash._num_pieces(900, 310, 128) == 3 and splash._num_pieces(300, 310, 128) == 1
    assert_equals_reference(INTERPRETED["splash"], rows, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("kernel", INTERPRETED)
def test_queries_without_keys_and_padding_give_zeros_and_take_no_gradient(rows, kernel):
    """Segment 2 of the first row has no text, nor has the whole second row."""
    q, k, v, q_ids, _ = rows
    kv_ids = jnp.asarray(np.stack([np.repeat([1, 3, 0], [100, 200, 10]), np.zeros(310)]).astype(np.int32))
    compute = lambda *a: flash_attention(INTERPRETED[kernel], *a)  # noqa: E731
    out, d_q, d_k, d_v = values_and_gradients(compute, q, k, v, q_ids, kv_ids)
    without = np.ones(q.shape[:2], bool)
    without[0, :300], without[0, 340:840] = False, False
    for x in (out, d_q):
        assert np.all(x[without] == 0) and np.all(np.abs(x[~without]).max(-1) > 0)
    for x in (d_k, d_v):
        assert np.all(x[np.asarray(kv_ids) == 0] == 0) and np.isfinite(x).all()


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


@pytest.mark.parametrize("num_segments", [1, 4, 16])
def test_work_follows_the_segments(num_segments):
    """The pairs of blocks that are computed are those of Σ len²: 16² / num_segments of a row of 16 blocks."""
    ids = jnp.asarray(packed_ids([2048 // num_segments] * num_segments, 2048))
    for block in (128, 64):  # of keys, for each block of 128 queries
        low, high = block_ranges(ids, ids, 128, block)
        assert int(jnp.sum(high - low)) == 256 // num_segments * (128 // block)
    assert int(jnp.sum(splash.active_blocks(ids, ids, 128, 128))) == 256 // num_segments


def test_splash_lists_the_active_blocks_in_the_narrowest_table_that_holds_them():
    assert splash.widths(6) == [6] and splash.widths(8) == [8] and splash.widths(130) == [3, 9, 33, 130]
    active = np.zeros((3, 33), bool)
    active[0, [4, 5, 6]], active[2, 32] = True, True
    wide = active.copy()
    wide[1, :4] = True
    # The tables of all widths have to have one shape to be compared: how often each column is fetched and computed.
    for table, width in ((active, 3), (wide, 9)):
        shown = splash.in_narrowest(jnp.asarray(table), lambda fetched, computed: _columns(fetched, computed, 33))
        np.testing.assert_array_equal(shown[0], 2 * table)
        assert int(shown[1]) == 3 * width
    fetched, computed = splash.in_narrowest(jnp.asarray(active[:, 3:8]), lambda *tables: tables)
    assert fetched[0].tolist() == [1, 2, 3, 3, 3] and computed[0].tolist() == [2, 2, 2, 0, 0]


def _columns(fetched, computed, columns):
    one_hot = jax.nn.one_hot(fetched, columns, dtype=jnp.int32)
    return jnp.einsum("IWJ,IW->IJ", one_hot, computed.astype(jnp.int32)), jnp.int32(fetched.size)


def test_auto_follows_the_meshs_platform_and_the_rows_length():
    assert choose_kernel("auto", 384, False) == "reference"
    assert choose_kernel("auto", 385, False) == "blockwise"
    devices = {"tpu": "splash", "gpu": "triton", "cpu": "blockwise", "rocm": "blockwise"}
    for platform, kernel in devices.items():
        device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
        mesh = jax.sharding.AbstractMesh((8,), ("data",), (AxisType.Explicit,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert choose_kernel("auto", 4096, False) == kernel
            assert choose_kernel("auto", 4096, True) == "reference"
            assert choose_kernel("auto", 256, False) == "reference"
    with jax.set_mesh(make_mesh({"data": 8})):
        assert jax.jit(lambda x: x + (choose_kernel("auto", 4096, False) == "blockwise"))(0) == 1


def test_a_kernel_that_cannot_do_what_is_asked_raises(rows):
    with pytest.raises(UserError, match="'splash' is written for tpu, but the mesh is of cpu; take 'blockwise'"):
        attention(*rows, kernel="splash")
    bias = jnp.ones((1, 2, 900, 310))
    with pytest.raises(UserError, match="'blockwise' adds no bias"):
        attention(*rows, kernel="blockwise", bias=bias)
    np.testing.assert_array_equal(attention(*rows, bias=bias), reference_attention(*rows, bias))


def test_unknown_kernel_names_the_valid_ones(rows):
    with pytest.raises(UserError, match="blockwise, reference, splash, triton"):
        attention(*rows, kernel="flash")
