"""The discriminator as a second group: its losses, the adaptive weight, its start, and a broken step of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.config import OptimConfig, TrainConfig, build_config
from sora_jax.models.autoencoder import AutoencoderConfig, Stage
from sora_jax.models.codec import apply, to_float
from sora_jax.models.discriminator import GanConfig, hinge, r1, rows_mean
from sora_jax.objectives.adversarial import generator_loss, score_of
from sora_jax.objectives.autoencoder import AutoencoderLossConfig, make_evaluate, make_groups, make_init
from sora_jax.parallel import make_mesh, put_batch, state_shardings
from sora_jax.training.step import abstract_state, init_state, make_train_step
from sora_jax.types import Task

MODEL = AutoencoderConfig(latent_channels=4, stages=(Stage(2, 2, 8, 1),))
GAN = GanConfig(weight=0.5, start_step=1, r1_weight=0.1, widths=(8, 8))
VIDEO = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)


def test_the_hinge_and_r1_of_scores_that_are_known():
    ones = jnp.ones((1, 1, 2, 2))
    np.testing.assert_allclose(hinge(3 * ones, -3 * ones), 0.0)
    np.testing.assert_allclose(hinge(0.5 * ones, -0.25 * ones), 0.5 + 0.75)
    video = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 3))
    slope = jax.random.normal(jax.random.key(1), video.shape[1:])
    of_linear = r1(lambda x: (x * slope).sum((1, 2, 3, 4))[:, None, None, None], video)
    np.testing.assert_allclose(of_linear, np.full(2, np.sum(np.square(slope))), rtol=1e-5)


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    params = make_init(MODEL, GAN)(jax.random.key(0))
    video, latents = to_float(VIDEO), jax.random.normal(jax.random.key(1), (2, 2, 2, 2, 4))

    def decode(own):
        return apply(MODEL, own).decode(latents, [])[0]

    def error(x):
        return jnp.abs(x - video).mean((1, 2, 3, 4))

    @jax.jit
    def both(params):
        score = score_of(GAN, params["discriminator"])
        losses = (error, lambda x: -rows_mean(score(x)))
        gradients = [jax.grad(lambda own, f=f: f(decode(own)).sum())(params["autoencoder"]) for f in losses]
        norms = [jnp.linalg.norm(g["decoder"]["up"]["stage_0"]["kernel"]) for g in gradients]
        decoded = decode(params["autoencoder"])
        found = [generator_loss(MODEL, GAN, params, latents, decoded, error, jnp.int32(n)) for n in (0, 1)]
        return norms[0] / (norms[1] + 1e-6), losses[1](decoded), found

    expected, fooled, (before, after) = both(params)
    np.testing.assert_allclose(after[1], expected, rtol=1e-4)
    np.testing.assert_allclose(after[0], GAN.weight * expected * fooled, rtol=1e-4)
    assert np.all(np.asarray(before[0]) == 0) and np.any(np.asarray(after[0]) != 0)


def broken_at(step: int, group):
    """The same group with a loss that is not a number at one step."""

    def loss(params, frozen, batch, key, row_offset):
        output = group.loss(params, frozen, batch, key, row_offset)
        return output._replace(total=output.total * jnp.where(batch["step"] == step, jnp.nan, 1.0))

    return dataclasses.replace(group, loss=loss)


def test_it_starts_when_told_and_its_broken_step_is_not_applied():
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0)
    config = TrainConfig(task="autoencoder", num_steps=10, batch_rows=2)
    generator, discriminator = make_groups(MODEL, AutoencoderLossConfig(), GAN, optim)
    task = Task(
        name="autoencoder",
        init=make_init(MODEL, GAN),
        groups=(generator, broken_at(2, discriminator)),
        evaluate=make_evaluate(MODEL, AutoencoderLossConfig()),
        flops=lambda batch: 0.0,
    )
    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        shardings = state_shardings(abstract_state(task, config), mesh)
        state = init_state(task, config, shardings)
        step = make_train_step(task, config, shardings)
        states, rows = [jax.device_get(state)], []
        for _ in range(4):
            state, metrics = step(state, {}, put_batch({"video": VIDEO}, mesh))
            states.append(jax.device_get(state))
            rows.append(dict(zip(metrics.names, np.asarray(metrics.values), strict=True)))

    def moved(number: int, name: str) -> bool:
        old, new = (jax.tree.leaves(states[n].params[name]) for n in (number, number + 1))
        return any(np.any(a != b) for a, b in zip(old, new, strict=True))

    assert [moved(n, "autoencoder") for n in range(4)] == [True, True, False, True]
    assert [moved(n, "discriminator") for n in range(4)] == [False, True, False, True]
    assert int(states[4].skipped) == 1 and int(states[4].step) == 4
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(states[4].params))
    assert {"gan_weight", "gan_real", "gan_fake", "gan_hinge", "gan_r1", "l1", "kl", "psnr"} <= rows[0].keys()
    assert rows[0]["loss/discriminator"][0] == 0 and rows[1]["loss/discriminator"][0] > 0


@pytest.mark.parametrize(
    ("fields", "says"), [({"weight": -1.0}, "gan.weight is -1"), ({"widths": ()}, "needs a layer")]
)
def test_a_discriminator_that_cannot_be_is_an_error(fields, says):
    with pytest.raises(UserError, match=says):
        build_config(GanConfig, fields, "config.gan")
    with pytest.raises(UserError, match="needs 4 pixels a side, got 8x3"):
        GAN.check_size(3, 8)
