"""Guidance within an interval, and its rescaling, over packed rows; the network is not asked for what is not used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.diffusion import samplers
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.guidance import Guidance, Kind, guide, guided, kind_of, rescale

# One row: a sample of 16 tokens, the first 4 of them known, one of 4 tokens, and padding.
SEGMENTS = jnp.asarray([[1] * 16 + [2] * 4 + [0] * 4])
GROUPS = jnp.asarray([[1] * 4 + [0] * 12 + [2] * 4 + [0] * 4])
SIZES = jnp.asarray([[16, 4]])
INTERVAL = Guidance(3.0, 0.3, 0.7)


def test_scale_one_is_the_conditional_velocity():
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 24, 3))
    np.testing.assert_allclose(guide(a, b, 1.0), a, atol=1e-6)
    np.testing.assert_allclose(guide(a, b, 3.0), b + 3 * (a - b), atol=1e-6)


def test_a_program_is_compiled_for_the_least_that_its_numbers_need():
    assert kind_of(Guidance()) == kind_of(Guidance(1.0, 0.2, 0.5, 0.7)) == Kind()
    assert kind_of(Guidance(4.0)) == Kind(is_guided=True)
    assert kind_of(INTERVAL) == Kind(is_guided=True, has_interval=True)
    assert kind_of(Guidance(4.0, rescale=0.5)) == Kind(is_guided=True, has_rescale=True)


def sample(noise, guidance, shift, calls=None, segments=SEGMENTS, groups=GROUPS, sizes=SIZES):
    """Ten Euler steps; the conditional velocity is x, the unconditional one 2 x. `calls` counts evaluations."""

    def conditional(x, times):
        if calls is not None:
            jax.debug.callback(lambda: calls.append("conditional"))
        return x

    def pair(x, times):
        if calls is not None:
            jax.debug.callback(lambda: calls.append("pair"))
        return x, 2 * x

    @jax.jit
    def solve(noise, guidance):
        velocity = guided(conditional, pair, guidance, kind_of(INTERVAL), segments, groups)
        return samplers.solve(velocity, noise, samplers.schedule(10, sizes, 4, shift), groups, "euler")

    out = np.asarray(solve(noise, guidance))
    jax.effects_barrier()
    return out


def test_outside_of_the_interval_the_unconditional_half_is_not_computed():
    calls: list[str] = []
    noise = jax.random.normal(jax.random.key(1), (1, 24, 3))
    out = sample(noise, INTERVAL, 1.0, calls)
    # Of the times 1, 0.9 … 0.1 at which a step begins, 0.7 to 0.3 are within.
    assert calls.count("pair") == 5 and calls.count("conditional") == 5
    factors = [1 - 0.1 * (-1.0 if 3 <= step <= 7 else 1.0) for step in range(10)]  # 2x + 3 (x - 2x) = -x
    np.testing.assert_allclose(out[:, 4:20], noise[:, 4:20] * np.prod(factors), rtol=1e-5)
    assert np.array_equal(out[:, :4], noise[:, :4])


def test_samples_whose_times_enter_the_interval_apart_do_not_disturb_each_other():
    """Their sizes shift their times: some steps are within for one sample alone."""
    noise = jax.random.normal(jax.random.key(2), (1, 24, 3))
    together = sample(noise, INTERVAL, 0.0)
    padding = (jnp.arange(24) >= 4)[None]
    alone = jnp.where(padding[..., None], 0.0, jnp.roll(noise, -16, axis=1))
    groups = jnp.where(padding, 0, 0)
    alone = sample(alone, INTERVAL, 0.0, None, jnp.where(padding, 0, 1), groups, jnp.asarray([[4]]))
    np.testing.assert_allclose(together[:, 16:20], alone[:, :4], rtol=1e-6)
    assert not np.allclose(together[:, 16:20] / noise[:, 16:20], together[:, 4:5, :1] / noise[:, 4:5, :1])


def test_rescaling_gives_each_samples_noisy_tokens_the_conditional_deviation():
    v, conditional = (np.array(a) for a in jax.random.normal(jax.random.key(3), (2, 1, 24, 3)))
    v[:, 16:20] = 5 * v[:, 16:20] + 2
    conditional[:, :4], conditional[:, 20:] = 100.0, -100.0  # neither known tokens nor padding count
    for share in (1.0, 0.7):
        out = np.asarray(rescale(jnp.asarray(v), jnp.asarray(conditional), share, SEGMENTS, GROUPS, 4))
        for tokens in (slice(4, 16), slice(16, 20)):
            ratio = conditional[:, tokens].std() / v[:, tokens].std()
            np.testing.assert_allclose(out[:, tokens], v[:, tokens] * (share * ratio + 1 - share), rtol=1e-5)
    assert np.isfinite(rescale(jnp.zeros_like(v), jnp.asarray(conditional), 1.0, SEGMENTS, GROUPS, 4)).all()


@pytest.mark.parametrize(
    "options, says",
    [
        ({"guidance": float("inf")}, "guidance is inf"),
        ({"guidance_interval": (0.7, 0.3)}, "guidance_interval is 0.7 to 0.3"),
        ({"guidance_interval": (-0.1, 0.3)}, "0 <= low < high <= 1"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5"),
        ({"shift": -1.0}, "shift is -1.0"),
        ({"num_steps": 0}, "steps is 0"),
        ({"solver": "rk45"}, "none of euler, heun, midpoint, dpm\\+\\+, unipc"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        SamplingConfig(**options)


def test_network_calls_are_counted():
    assert [SamplingConfig(10, solver=s).num_calls for s in ("euler", "heun", "unipc")] == [10, 20, 10]
