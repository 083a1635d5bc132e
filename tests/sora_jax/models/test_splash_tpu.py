"""Splash attention through the seam, compiled for TPUs that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.models.attention import attention
from sora_jax.parallel import make_mesh

pytestmark = pytest.mark.tpu_compiler


@pytest.mark.parametrize("keys, dtype", [(16_384, "bfloat16"), (512, "float32")])
def test_the_seam_compiles_to_splash_on_a_mesh_of_tpus_without_an_exchange(absent_tpus, keys, dtype):
    mesh = make_mesh({"data": 2, "tensor": 2}, absent_tpus("v5p:2x2x1"))

    def tensor(length):
        sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
        return jax.ShapeDtypeStruct((2, length, 4, 128), dtype, sharding=sharding)

    def ids(length):
        return jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec("data")))

    def gradients(q, k, v, q_ids, kv_ids):
        loss = lambda q, k, v: jnp.sum(attention(q, k, v, q_ids, kv_ids).astype(jnp.float32) ** 2)  # noqa: E731
        return jax.grad(loss, (0, 1, 2))(q, k, v)

    with jax.set_mesh(mesh):
        lowered = jax.jit(gradients).lower(tensor(16_384), tensor(keys), tensor(keys), ids(16_384), ids(keys))
        text = lowered.compile().as_text()
    for kernel in ("splash_mha_fwd_segmented_residuals", "splash_mha_dq_segmented", "splash_mha_dkv_segmented"):
        assert kernel in text
    assert "all-gather" not in text and "all-reduce" not in text and "all-to-all" not in text


@pytest.mark.parametrize(
    "heads, expected", [(4, {"all-to-all"}), (3, {"collective-permute"}), (6, {"all-to-all", "collective-permute"})]
)
def test_a_spread_row_compiles_by_heads_and_round_the_ring(absent_tpus, heads, expected):
    mesh = make_mesh({"context": 4}, absent_tpus("v5p:2x2x1"))
    sharding = NamedSharding(mesh, PartitionSpec(None, "context"))
    tensor = jax.ShapeDtypeStruct((1, 8192, heads, 128), jnp.bfloat16, sharding=sharding)
    ids = jax.ShapeDtypeStruct((1, 8192), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))

    def gradients(q, k, v, ids):
        loss = lambda q, k, v: jnp.sum(attention(q, k, v, ids, ids).astype(jnp.float32) ** 2)  # noqa: E731
        return jax.grad(loss, (0, 1, 2))(q, k, v)

    with jax.set_mesh(mesh):
        text = jax.jit(gradients).lower(tensor, tensor, tensor, ids).compile().as_text()
    exchanges = {
        e for e in ("all-to-all", "collective-permute", "all-gather") if f"{e}(" in text or f"{e}-start(" in text
    }
    assert exchanges == expected and "splash_mha_fwd_segmented_residuals" in text
