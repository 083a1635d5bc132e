"""Products in 8 bits beside the same in numpy, their gradients, and that a compiler for accelerators keeps them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import UserError
from sora_jax.models.dit import DitConfig
from sora_jax.models.low_precision import MATMULS, quantise, use_matmul
from sora_jax.models.text_encoder import TextEncoderConfig

ERRORS = {"int8": 0.012, "fp8": 0.04}
"""Of a product of two normal matrices, relative to its norm; gradients in e5m2 have twice that of e4m3."""


def arrays(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 7, 64), (64, 3, 8), (2, 7, 3, 8)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def distance(found, true):
    found, true = (np.asarray(x, np.float64) for x in (found, true))
    return np.linalg.norm(found - true) / np.linalg.norm(true)


def products(kind, x, w, g):
    """The product, and its gradients along `g`."""
    dims = (((2,), (0,)), ((), ()))
    out, pull = jax.vjp(lambda x, w: MATMULS[kind](x, w, dims), x, w)
    return out, *pull(g)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_products_are_near_the_full_ones_and_the_weights_gradient_is_theirs(kind):
    x, w, g = arrays()
    (out, of_x, of_w), full = products(kind, x, w, g), products("full", x, w, g)
    assert 1e-3 < distance(out, full[0]) < ERRORS[kind]
    assert 1e-3 < distance(of_x, full[1]) < ERRORS[kind] * (2 if kind == "fp8" else 1)
    np.testing.assert_allclose(of_w, full[2], rtol=1e-5, atol=1e-5)


def test_int8_is_the_product_of_the_rounded_integers():
    x, w, g = arrays()

    def rounded(values, axis):
        scale = np.abs(values).max(axis=axis, keepdims=True) / 127
        return np.round(values / scale), scale

    tokens, weights, outputs = (np.asarray(v, np.float64).reshape(n, -1) for v, n in ((x, 14), (w, 64), (g, 14)))
    (a, a_scale), (b, b_scale) = rounded(tokens, 1), rounded(weights, 0)
    out, of_x, _ = products("int8", x, w, g)
    np.testing.assert_allclose(np.asarray(out).reshape(14, 24), a @ b * a_scale * b_scale, rtol=1e-5, atol=1e-5)
    (a, a_scale), (b, b_scale) = rounded(outputs, 1), rounded(weights, 1)
    expected = a @ b.T * a_scale * b_scale.T
    np.testing.assert_allclose(np.asarray(of_x).reshape(14, 64), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rows_of_zeros_and_of_the_largest_values_stay_finite(kind):
    dtype = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}[kind]
    x = jnp.stack([jnp.zeros(5), jnp.asarray([1e30, -1e30, 0, 1, 3e29]), jnp.full(5, 1e-20)])
    values, scale = quantise(x, (1,), dtype)
    back = np.asarray(values.astype(jnp.float32) * scale)
    assert np.isfinite(back).all() and values.dtype == dtype and scale.shape == (3, 1)
    np.testing.assert_allclose(back[:2], x[:2], rtol=0.04, atol=4e27)


def test_layers_over_several_dims_take_them_and_other_products_are_refused():
    x, _, _ = arrays()
    split = nnx.LinearGeneral(64, (4, 8), rngs=nnx.Rngs(0))
    join = nnx.LinearGeneral((4, 8), 16, axis=(-2, -1), rngs=nnx.Rngs(1))
    full = join(split(x))
    use_matmul("int8", split, join)
    assert 0 < distance(join(split(x)), full) < 0.02
    with pytest.raises(ValueError, match="no product in 8 bits is written for the dims"):
        MATMULS["int8"](x, x, (((2,), (2,)), ((0,), (0,))))


def test_an_unknown_matmul_is_an_error():
    with pytest.raises(UserError, match="matmul is 'int4', which is none of full, int8, fp8"):
        DitConfig(4, TextEncoderConfig(20, 16, 1, 2, 2), matmul="int4")


@pytest.mark.tpu_compiler
def test_a_tpu_program_multiplies_integers(absent_tpus):
    sharding = jax.sharding.SingleDeviceSharding(absent_tpus("v5e:2x2")[0])
    x, w, g = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
        for shape in ((1, 1024, 512), (512, 512), (1, 1024, 512))
    )
    program = jax.jit(functools.partial(products, "int8")).lower(x, w, g).compile().as_text()
    assert "s32[1024,512]" in program.replace("s32[1,1024,512]", "s32[1024,512]") and "s8[" in program
