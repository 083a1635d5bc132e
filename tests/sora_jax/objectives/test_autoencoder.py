"""The autoencoder's losses: each term is what its weight multiplies, off where that is zero, and the same on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.config import build_config
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.discriminator import GanConfig
from sora_jax.models.layers import initialise
from sora_jax.models.lpips import lpips, weight_shapes
from sora_jax.objectives.autoencoder import AutoencoderLossConfig, lpips_of_clips, make_evaluate, make_loss
from sora_jax.parallel import make_mesh, put_batch, state_shardings

MODEL = AutoencoderConfig(latent_channels=4, stages=(Stage(2, 2, 8, 1),))


@pytest.fixture(scope="module")
def params():
    return {"autoencoder": initialise(lambda rngs: VideoAutoencoder(MODEL, rngs), jax.random.key(0))}


@pytest.fixture(scope="module")
def batch():
    return {"video": np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), np.uint8)}


@pytest.fixture(scope="module")
def frozen():
    rng = np.random.default_rng(1)
    return {"lpips": {n: jnp.asarray(0.05 * rng.random(s, np.float32)) for n, s in weight_shapes("alex").items()}}


def test_lpips_is_added_with_its_weight(params, batch, frozen):
    def loss(**weights):
        cfg = AutoencoderLossConfig(lpips_net="alex", lpips_weights="somewhere", **weights)
        return jax.jit(make_loss(MODEL, cfg, GanConfig()))(params, frozen, batch, jax.random.key(0), jnp.int32(0))

    without, with_it = loss(), loss(lpips_weight=2.0)
    assert "lpips" not in without.metrics
    distance, weight = with_it.metrics["lpips"]
    assert distance > 0 and weight == len(batch["video"])
    np.testing.assert_allclose(with_it.total, without.total + 2.0 * distance, rtol=1e-5)
    for cfg in (AutoencoderLossConfig(lpips_net="alex", lpips_weights="somewhere"), AutoencoderLossConfig()):
        held_out = jax.eval_shape(make_evaluate(MODEL, cfg), params, frozen, batch, jax.random.key(0))
        assert ("lpips" in held_out) == bool(cfg.lpips_weights)


def test_the_lpips_of_a_clip_is_the_mean_over_its_frames(frozen):
    x, y = (jax.random.uniform(jax.random.key(seed), (1, 2, 32, 32, 3), minval=-1.0) for seed in (1, 2))
    distance = jax.jit(lpips, static_argnums=0)
    frames = [distance("alex", frozen["lpips"], x[0, t, None], y[0, t, None])[0] for t in range(2)]
    clips = jax.jit(lpips_of_clips, static_argnums=0)("alex", frozen["lpips"], x, y)
    np.testing.assert_allclose(clips[0], np.mean(frames), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lpips_weight": 1.0}, "lpips_weight is 1.0, but config.loss.lpips_weights names no folder"),
        ({"lpips_net": "resnet"}, "none of alex, squeeze, vgg"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
    ],
)
def test_a_loss_that_cannot_be_is_an_error(fields, says):
    with pytest.raises(UserError, match=says):
        build_config(AutoencoderLossConfig, fields, "config.loss")


def gradients(batch, mesh_shape, num_devices: int):
    """Loss, gradients, parameters and bytes of a device's temporaries, of a network that sees its neighbours in space
    and time."""
    model = AutoencoderConfig(latent_channels=4, patch_size=2, stages=(Stage(2, 2, 16, 1),))
    init = jax.jit(lambda key: {"autoencoder": initialise(lambda rngs: VideoAutoencoder(model, rngs), key)})
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(
        lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), jax.device_get(init(jax.random.key(0)))
    )
    loss = make_loss(model, AutoencoderLossConfig(squared_weight=1.0), GanConfig())
    mesh = make_mesh(mesh_shape, jax.devices()[:num_devices])
    with jax.set_mesh(mesh):
        params, batch = jax.device_put(noisy, state_shardings(noisy, mesh)), put_batch(batch, mesh)
        value = jax.jit(jax.value_and_grad(lambda p, b: loss(p, (), b, jax.random.key(0), jnp.int32(0)).total))
        compiled = value.lower(params, batch).compile()
        return *jax.device_get(compiled(params, batch)), params, compiled.memory_analysis().temp_size_in_bytes


def test_a_mesh_changes_only_the_rounding_and_shares_the_memory():
    """Rows over data and fsdp, each frame's rows of pixels over context, kernels over fsdp."""
    batch = {"video": np.random.default_rng(0).integers(0, 256, (4, 5, 32, 8, 3), np.uint8)}
    total, grads, _, temporaries = gradients(batch, {}, 1)
    found, found_grads, params, shared = gradients(batch, {"data": 2, "fsdp": 2, "context": 2}, 8)
    np.testing.assert_allclose(found, total, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
    assert shared < temporaries / 4
    kernel = params["autoencoder"]["encoder"]["blocks"]["stage_0"]["block_0"]["space"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 16, 16) and kernel.sharding.shard_shape(kernel.shape) == (3, 3, 16, 8)
