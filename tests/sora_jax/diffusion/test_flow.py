"""The flow's conventions convert into each other; samplers solve the exact flow of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.diffusion import flow, samplers
from sora_jax.diffusion.flow import FlowConfig


def test_predictions_convert_into_each_other():
    x_0, noise = jax.random.normal(jax.random.key(0), (2, 5, 3))
    t = jnp.asarray([0.1, 0.3, 0.5, 0.7, 0.9])[:, None]
    x_t, velocity = flow.corrupt(x_0, noise, t), noise - x_0
    for output, prediction in ((velocity, "velocity"), (x_0, "x_0"), (noise, "noise")):
        np.testing.assert_allclose(flow.to_velocity(output, x_t, t, prediction), velocity, atol=1e-5)
    np.testing.assert_allclose(flow.to_x_0(velocity, x_t, t), x_0, atol=1e-6)
    np.testing.assert_allclose(flow.to_noise(velocity, x_t, t), noise, atol=1e-6)


def test_shift_keeps_the_ends_and_moves_large_samples_towards_noise():
    t = jnp.linspace(0.0, 1.0, 5)
    same, large = (flow.shift(t, jnp.full(5, n), 100) for n in (100, 400))
    np.testing.assert_allclose(same, t, atol=1e-6)
    assert large[0] == 0 and large[-1] == 1 and jnp.all(large[1:-1] > t[1:-1])
    np.testing.assert_allclose(large[2], 2 / 3, atol=1e-6)  # a = 2: 2·½ / (1 + ½)


def test_unknown_prediction_names_the_valid_ones():
    with pytest.raises(UserError, match="velocity, x_0, noise"):
        FlowConfig(prediction="score")


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_the_exact_flow_of_a_gaussian_recovers_its_deviation(solver, order):
    """For x_0 ~ N(0, s²): v(x, t) = x (t - (1-t) s²) / ((1-t)² s² + t²), and x(0) = s x(1) exactly."""
    s = 0.5

    def velocity(x, times):
        t = times[:, :1, None]
        return x * (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)

    noise = jax.random.normal(jax.random.key(1), (1, 64, 1))
    ids = jnp.zeros((1, 64), jnp.int32)
    errors = []
    for steps in (20, 40):
        times = samplers.schedule(steps, jnp.asarray([[64]]), 64)
        errors.append(float(jnp.max(jnp.abs(samplers.solve(velocity, noise, times, ids, solver) - s * noise))))
    assert errors[1] < 0.05 and errors[0] / errors[1] > 0.8 * 2**order


def test_known_groups_never_move_and_guidance_one_is_conditional():
    noise = jax.random.normal(jax.random.key(2), (1, 4, 2))
    times = samplers.schedule(3, jnp.asarray([[4]]), 4)
    ids = jnp.asarray([[0, 1, 0, 1]])
    out = samplers.solve(lambda x, t: jnp.ones_like(x), noise, times, ids, "euler")
    assert jnp.all(out[:, 1::2] == noise[:, 1::2])
    np.testing.assert_allclose(out[:, ::2], noise[:, ::2] - 1.0, atol=1e-6)
    np.testing.assert_allclose(samplers.guide(noise, 2 * noise, 1.0), noise, atol=1e-6)
