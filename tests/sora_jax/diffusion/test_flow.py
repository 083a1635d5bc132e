"""The flow's conventions convert into each other, and its shift keeps both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.diffusion import flow
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
