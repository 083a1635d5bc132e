"""Rotary positions: each pair of a head turned by its token's angle; on a TPU in one pass with the norm before."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.models.layers import RMSNorm
from sora_jax.models.rope import rotary_1d, rotary_3d, rotate, turn_by_product, turn_halves
from sora_jax.parallel import make_mesh


@pytest.mark.parametrize("turn", [turn_halves, turn_by_product])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pairs_are_turned_as_complex_numbers_are(dtype, turn):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 3, 16)), dtype)
    positions = rng.integers(0, 1000, (2, 5)).astype(np.float32)
    found = np.asarray(turn(x, rotary_1d(jnp.asarray(positions), 16, 1e4)), np.float32)
    a, b = np.split(np.asarray(x, np.float64), 2, axis=-1)
    angles = positions[:, :, None, None] * 1e4 ** (-np.arange(8, dtype=np.float32) / 8)
    turned = (a + 1j * b) * np.exp(1j * angles)
    tolerance = 2e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(
        found, np.concatenate([turned.real, turned.imag], axis=-1), rtol=tolerance, atol=tolerance
    )


def test_the_product_turns_to_the_same_bits_forward_and_backward():
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal((2, 64, 3, 48)), jnp.float32) for _ in range(2))
    angles = rotary_3d(jnp.asarray(rng.uniform(0, 50, (2, 64, 3)), jnp.float32), 48, 1e4)
    halves, product = (jax.vjp(lambda x, turn=turn: turn(x, angles), x) for turn in (turn_halves, turn_by_product))
    np.testing.assert_array_equal(halves[0], product[0])
    np.testing.assert_array_equal(*(pullback(g)[0] for _, pullback in (halves, product)))


def test_the_products_of_queries_and_keys_follow_their_distance_alone():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 24)), jnp.float32) for _ in range(2))

    def product(at_q, at_k):
        turned = [rotate(x, rotary_3d(jnp.asarray([[at]], jnp.float32), 24, 1e4)) for x, at in ((q, at_q), (k, at_k))]
        return float(jnp.sum(turned[0] * turned[1]))

    near, moved = product((1, 2, 3), (4, 4, 4)), product((11, 22, 33), (14, 24, 34))
    assert near == pytest.approx(moved, abs=1e-4)
    assert abs(near - product((1, 2, 3), (4, 4, 9))) > 1e-3


@pytest.mark.tpu_compiler
def test_a_tpu_norms_and_turns_in_one_pass_without_wide_values_between(absent_tpus):
    """Nothing of the size of all heads is written in float32, which slices of halves make it do."""
    mesh = make_mesh({}, absent_tpus("v5e:2x2")[:1])
    sharding, norm = NamedSharding(mesh, PartitionSpec()), RMSNorm(128)

    def project(x, w, positions):
        q = jnp.einsum("BLD,DNK->BLNK", x, w)
        return jnp.moveaxis(rotate(norm(q), rotary_3d(positions, 128, 1e4)), 2, 1)

    shapes = ((1, 4096, 1024), jnp.bfloat16), ((1024, 8, 128), jnp.bfloat16), ((1, 4096, 3), jnp.float32)
    arguments = [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]
    with jax.set_mesh(mesh):
        program = jax.jit(project).lower(*arguments).compile().as_text()
    written = program[program.index("ENTRY") :]
    wide = [
        size for size in re.findall(r"= f32\[([\d,]+)\]", written) if np.prod([*map(int, size.split(","))]) >= 2**22
    ]
    assert not wide, f"float32 of the shapes {wide}"
