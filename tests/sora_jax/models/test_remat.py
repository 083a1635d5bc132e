"""What is recomputed, or kept on the host, changes nothing but memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from data_pipeline.packing import RowLayout, SampleInput, pack_row, stack_rows
from sora_jax.diffusion.denoiser import dit_definition
from sora_jax.models.dit import Dit, DitConfig
from sora_jax.models.layers import REMAT_POLICIES, definition, initialise, scan_blocks, stack
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.parallel import make_mesh, put_batch, state_shardings

MODEL = DitConfig(4, TextEncoderConfig(20, 16, 1, 2, 2), width=32, depth=2, num_heads=2, attention_kernel="reference")
ROWS, TOKENS = 8, 24


def batch_of_rows() -> dict[str, np.ndarray]:
    layout, rng = RowLayout(TOKENS, 8, 2, (1, 1, 1), 4, 2.0), np.random.default_rng(0)
    shapes = ((2, 2, 3), (1, 3, 3))

    def sample(shape: tuple[int, int, int]) -> SampleInput:
        return SampleInput(shape, 8.0, 4, [3, 5, 7, 2], rng.standard_normal((*shape, 4), np.float32))

    return stack_rows([pack_row([sample(shape) for shape in shapes], layout) for _ in range(ROWS)])


def loss(model: DitConfig, params, batch):
    times = jnp.full((ROWS, 4), 0.5)
    return jnp.mean(jnp.square(nnx.merge(dit_definition(model), params)(batch["tokens"], times, batch)))


@pytest.fixture(scope="module")
def gradients():
    """`gradients(remat)`: the loss and its gradients, with every parameter away from zero."""
    rng, mesh = np.random.default_rng(1), make_mesh({"fsdp": 4, "tensor": 2})
    tree = jax.jit(lambda key: initialise(lambda rngs: Dit(MODEL, rngs), key))(jax.random.key(0))
    params = jax.tree.map(lambda p: np.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), tree)

    @functools.cache
    def compute(remat: str):
        own = dataclasses.replace(MODEL, remat=remat)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, state_shardings(params, mesh))
            return jax.jit(jax.value_and_grad(functools.partial(loss, own)))(placed, put_batch(batch_of_rows(), mesh))

    return compute


@pytest.mark.parametrize("remat", sorted(set(REMAT_POLICIES) - {"none"}))
def test_every_policy_has_the_values_and_gradients_of_none_on_a_mesh(gradients, remat):
    for plain, other in zip(*map(jax.tree.leaves, (gradients("none"), gradients(remat))), strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(plain), rtol=1e-5, atol=1e-6)


class Block(nnx.Module):
    """A block whose inside is wider than its input, as a DiT's is."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.mlp_in, self.mlp_out = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.mlp_out(jax.nn.gelu(self.mlp_in(x)))


@pytest.mark.tpu_compiler
def test_offload_moves_the_inputs_of_blocks_to_the_hosts_memory(absent_tpus):
    mesh, (depth, rows, tokens, width) = make_mesh({"fsdp": 4}, absent_tpus("v5e:2x2")), (8, 32, 8192, 256)
    make = functools.partial(stack, lambda rngs: Block(width, rngs), depth)
    shapes = jax.eval_shape(lambda: initialise(make, jax.random.key(0)))

    def memory(remat):
        def total(params, x):
            return jnp.sum(jnp.square(scan_blocks(nnx.merge(definition(make), params), x, remat)))

        shardings = state_shardings(shapes, mesh)
        params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        by_row = NamedSharding(mesh, PartitionSpec("fsdp"))
        x = jax.ShapeDtypeStruct((rows, tokens, width), jnp.float32, sharding=by_row)
        with jax.set_mesh(mesh):
            return jax.jit(jax.grad(total)).lower(params, x).compile().memory_analysis()

    full, offload = memory("full"), memory("offload")
    inputs = depth * (rows // 4) * tokens * width * 4  # float32, of a quarter of the rows
    assert full.host_temp_size_in_bytes == 0 and offload.host_temp_size_in_bytes == inputs
    assert full.temp_size_in_bytes - offload.temp_size_in_bytes > inputs / 2
