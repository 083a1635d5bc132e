"""The GPU kernel through the seam, compiled for GPUs that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.models.attention import attention
from sora_jax.parallel import make_mesh
from sora_jax.planning.topologies import CHIPS, gpu_target
from sora_jax.training.compile_cache import without_compile_cache

pytestmark = pytest.mark.cuda_compiler


@pytest.fixture
def h100(monkeypatch):
    """The devices of a host of eight H100, for the compiler only."""
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    target = gpu_target(CHIPS["h100"])
    with without_compile_cache():
        yield topologies.get_topology_desc("", "cuda", target_config=target, topology="1x1x8").devices


@pytest.mark.parametrize("keys, width, dtype", [(8192, 128, "bfloat16"), (512, 72, "bfloat16"), (8192, 64, "float32")])
def test_the_seam_compiles_to_triton_on_a_mesh_of_gpus_without_an_exchange(h100, keys, width, dtype):
    mesh = make_mesh({"data": 4, "tensor": 2}, h100)

    def tensor(length):
        sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
        return jax.ShapeDtypeStruct((4, length, 4, width), dtype, sharding=sharding)

    def ids(length):
        return jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec("data")))

    def gradients(q, k, v, q_ids, kv_ids):
        loss = lambda q, k, v: jnp.sum(attention(q, k, v, q_ids, kv_ids).astype(jnp.float32) ** 2)  # noqa: E731
        return jax.grad(loss, (0, 1, 2))(q, k, v)

    with jax.set_mesh(mesh):
        lowered = jax.jit(gradients).lower(tensor(8192), tensor(keys), tensor(keys), ids(8192), ids(keys))
        text = lowered.compile().as_text()
    for kernel in ("flash_forward", "flash_d_query", "flash_d_key_value"):
        assert kernel in text
    assert "all-gather" not in text and "all-reduce" not in text and "all-to-all" not in text
