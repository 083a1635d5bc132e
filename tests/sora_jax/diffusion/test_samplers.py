"""Every solver against flows whose solution is known, and against the plain form of its own paper, one group at a time.

The velocities are exact: of one Gaussian, and of a mixture of two, whose flow is the monotone map between quantiles.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from sora_jax.diffusion import samplers
from sora_jax.diffusion.samplers import SOLVERS

MEAN, DEVIATION = 0.3, 0.5
SHARES, MEANS, DEVIATIONS = np.array([0.3, 0.7]), np.array([-1.0, 1.0]), np.array([0.4, 0.5])
START = np.linspace(-2.5, 2.5, 32)


def gaussian(x, t):
    """v = E[ε | x] - E[x_0 | x] of x_0 ~ N(MEAN, DEVIATION²)."""
    a = 1 - t
    variance, z = a * a * DEVIATION**2 + t * t, x - a * MEAN
    return t / variance * z - (MEAN + a * DEVIATION**2 / variance * z)


def mixture(x, t):
    """The same of two Gaussians, whose shares at x follow from their densities there."""
    xp = np if isinstance(x, np.ndarray) else jnp
    x, t = x[..., None], t[..., None]
    a = 1 - t
    variance, z = a * a * DEVIATIONS**2 + t * t, x - a * MEANS
    densities = xp.exp(-z * z / (2 * variance)) * SHARES / xp.sqrt(variance)
    shares = densities / densities.sum(-1, keepdims=True)
    return (shares * (t / variance * z - MEANS - a * DEVIATIONS**2 / variance * z)).sum(-1)


@functools.cache
def solution() -> np.ndarray:
    """Where START goes: the Gaussian's line, then the mixture's quantiles."""

    def quantile(p):
        return brentq(lambda y: (SHARES * norm.cdf((y - MEANS) / DEVIATIONS)).sum() - p, -9, 9, xtol=1e-12)

    return np.concatenate([MEAN + DEVIATION * START, [quantile(norm.cdf(z)) for z in START]])


def largest_errors(solver: str, num_steps: int) -> tuple[float, float]:
    """Of the Gaussian's samples and of the mixture's, which share a row."""

    @jax.jit
    def solve(noise):
        def velocity(x, group_times):
            t = group_times[:, :1, None]
            return jnp.where((jnp.arange(64) < 32)[None, :, None], gaussian(x, t), mixture(x, t))

        times = samplers.schedule(num_steps, jnp.asarray([[64]]), 64)
        return samplers.solve(velocity, noise, times, jnp.zeros((1, 64), jnp.int32), solver)

    out = solve(np.tile(START, 2).astype(np.float32)[None, :, None])
    errors = np.abs(np.asarray(out)[0, :, 0] - solution())
    return errors[:32].max(), errors[32:].max()


# DPM-Solver++(2M) has no memory of its first step from t = 1, where λ is -∞: its errors there add up to log(n) / n².
ORDERS = {
    "euler": (0.9, 0.07),
    "heun": (1.9, 2e-3),
    "midpoint": (1.9, 2e-3),
    "dpm++": (1.6, 5e-3),
    "unipc": (1.9, 3e-3),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_errors_fall_by_the_solvers_order_and_the_distribution_is_recovered(solver):
    order, largest = ORDERS[solver]
    coarse, fine = largest_errors(solver, 48), largest_errors(solver, 96)
    for before, after in zip(coarse, fine, strict=True):
        assert after < largest
        assert np.log2(before / after) > order or after < 3e-6  # which is float32's own error


def euler(clean, x, t):
    for now, after in itertools.pairwise(t):
        x = x + (after - now) * velocity_of(clean, x, now)
    return x


def heun(clean, x, t):
    for now, after in itertools.pairwise(t):
        first = velocity_of(clean, x, now)
        x = x + (after - now) / 2 * (first + velocity_of(clean, x + (after - now) * first, after))
    return x


def midpoint(clean, x, t):
    for now, after in itertools.pairwise(t):
        half = (now + after) / 2
        x = x + (after - now) * velocity_of(clean, x + (half - now) * velocity_of(clean, x, now), half)
    return x


def velocity_of(clean, x, t):
    return clean(x, t, as_velocity=True)


def half_log_snr(t):
    """A number so large for ∞ that what the papers divide by it is nothing."""
    return np.array([np.log((1 - v) / v) if 0 < v < 1 else 1e9 * np.sign(0.5 - v) for v in t])


def dpm_solver_pp(clean, x, t):
    """Lu et al. 2022b, algorithm 2, with a last step of first order."""
    lam, said = half_log_snr(t), []
    for i in range(1, len(t)):
        said.append(clean(x, t[i - 1]))
        h = lam[i] - lam[i - 1]
        estimate = said[-1]
        if 1 < i < len(t) - 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            estimate = (1 + 1 / (2 * r)) * said[-1] - 1 / (2 * r) * said[-2]
        x = t[i] / t[i - 1] * x - (1 - t[i]) * np.expm1(-h) * estimate if t[i] else estimate
    return x


def unipc(clean, x, t):
    """Zhao et al. 2023, algorithms 1 and 2: UniP-2 and UniC-2 with B(h) = e^h - 1, as the system R a = φ / B."""
    lam, said, predicted = half_log_snr(t), [], x
    for i in range(len(t) - 1):
        new = clean(predicted, t[i])
        x = predicted if i == 0 else unified(x, t, lam, i, said, min(i, 2), new)
        said.append(new)
        last = i == len(t) - 2
        predicted = new if last else unified(x, t, lam, i + 1, said, min(i + 1, 2), None)
    return predicted


def unified(x, t, lam, i, said, order, new):
    """From t[i - 1] to t[i]: the predictor, or the corrector if `new` is what the network says at t[i]."""
    h = lam[i] - lam[i - 1]
    r = [(lam[i - 1 - m] - lam[i - 1]) / h for m in range(1, order)]
    differences = [(said[-1 - m] - said[-1]) / r[m - 1] for m in range(1, order)]
    if new is not None:
        r, differences = [*r, 1.0], [*differences, new - said[-1]]
    hh, b, phi, factorial = -h, [], np.expm1(-h) / -h - 1, 1
    for n in range(1, len(r) + 1):
        b.append(phi * factorial / np.expm1(hh))
        factorial *= n + 1
        phi = phi / hh - 1 / factorial
    weights = np.linalg.solve([[v**n for v in r] for n in range(len(r))], b) if len(r) > 1 else [0.5] * len(r)
    total = sum(w * d for w, d in zip(weights, differences, strict=True))
    return t[i] / t[i - 1] * x - (1 - t[i]) * np.expm1(hh) * (said[-1] + total)


REFERENCES = {"euler": euler, "heun": heun, "midpoint": midpoint, "dpm++": dpm_solver_pp, "unipc": unipc}

# One row, four groups with times of their own: from noise; from t = 0.7, as an edit begins; later than the others and
# done before them; known.
UNEVEN = [1.0, 0.93, 0.8, 0.55, 0.3, 0.12, 0.0]
EDIT = [0.7, 0.66, 0.5, 0.42, 0.21, 0.04, 0.0]
WAITING = [1.0, 1.0, 0.7, 0.4, 0.1, 0.0, 0.0]
TIMES = jnp.asarray(np.stack([UNEVEN, EDIT, WAITING, np.zeros(7)], axis=-1)[:, None], jnp.float32)
IDS = jnp.asarray([[0, 1, 2, 3] * 6])


@functools.cache
def mixed_row(solver: str) -> tuple[np.ndarray, np.ndarray]:
    """Noise and result; where a group is known, the network says nothing that is a number."""
    noise = np.random.default_rng(0).standard_normal((1, 24, 2)).astype(np.float32)
    noise[0, 3, 0] = -0.0  # which is not 0.0, bitwise

    def velocity(x, group_times):
        t = jnp.take_along_axis(group_times, IDS, axis=1)[..., None]
        return jnp.where((IDS == 3)[..., None], jnp.inf, mixture(x, t))

    out = jax.jit(lambda noise: samplers.solve(velocity, noise, TIMES, IDS, solver))(noise)
    return noise[0], np.asarray(out)[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("group, times", [(0, UNEVEN), (1, EDIT), (2, WAITING[1:-1])], ids=["noise", "edit", "waiting"])
def test_each_group_is_solved_as_its_paper_says_whatever_shares_its_row(solver, group, times):
    noise, out = mixed_row(solver)

    def clean(x, t, as_velocity=False):
        v = mixture(x, np.full_like(x, t))
        return v if as_velocity else x - t * v

    expected = REFERENCES[solver](clean, noise[group::4].astype(np.float64), times)
    np.testing.assert_allclose(out[group::4], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_tokens_never_change_a_bit(solver):
    noise, out = mixed_row(solver)
    assert np.array_equal(out[3::4].view(np.uint32), noise[3::4].view(np.uint32))
    assert np.isfinite(out).all() and (out[:3] != noise[:3]).all()


def test_a_schedule_is_exact_at_its_ends_and_shifted_by_size_or_by_factor():
    schedule = jax.jit(samplers.schedule, static_argnums=(0, 2))
    times = schedule(4, jnp.asarray([[100, 400], [7, 0]]), 100)
    assert times.shape == (5, 2, 4) and jnp.all(times[:, :, 1::2] == 0)
    assert jnp.all(times[0, :, ::2] == 1) and jnp.all(times[-1] == 0)
    np.testing.assert_allclose(times[2, 0, ::2], [0.5, 2 / 3], atol=1e-6)  # a = 2: 2·½ / (1 + ½)
    by_factor = schedule(4, jnp.asarray([[100, 400]]), 100, 3.0)
    np.testing.assert_allclose(by_factor[2, 0, ::2], [0.75, 0.75], atol=1e-6)


def test_one_program_makes_any_number_of_steps():
    """Times that it has room for, and does not reach, change nothing."""
    noise, ids = jnp.asarray(START, jnp.float32)[None, :, None], jnp.zeros((1, 32), jnp.int32)

    def solve(num_steps, room):
        times = samplers.schedule(num_steps, jnp.asarray([[32]]), 8, room=room)
        return samplers.solve(lambda x, t: mixture(x, t[:, :1, None]), noise, times, ids, "unipc", num_steps)

    program = jax.jit(lambda num_steps: solve(num_steps, 9))
    for num_steps in (1, 4, 9):
        np.testing.assert_allclose(program(num_steps), solve(num_steps, None), rtol=0, atol=1e-6)
    assert program._cache_size() == 1
