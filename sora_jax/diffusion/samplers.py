"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0), as plain functions over packed rows.

Every noise group has its own times, so that samples of different length, and tokens that are known, share a row.
`times[i]` is `[B, K]`; a group whose times are all zero never moves.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sora_jax.diffusion import flow

VelocityFn = Callable[[jax.Array, jax.Array], jax.Array]
"""(x [B, L, P], group times [B, K]) -> velocity [B, L, P]."""


def schedule(num_steps: int, sample_tokens: Int[Array, "B G"], reference_tokens: int) -> Float[Array, "num_times B K"]:
    """Uniform times from 1 to 0, shifted by each sample's number of tokens; known groups stay at 0."""
    uniform = jnp.linspace(1.0, 0.0, num_steps + 1)[:, None, None]
    noisy = flow.shift(
        jnp.broadcast_to(uniform, (num_steps + 1, *sample_tokens.shape)), sample_tokens, reference_tokens
    )
    return jnp.stack([noisy, jnp.zeros_like(noisy)], axis=-1).reshape(num_steps + 1, sample_tokens.shape[0], -1)


def euler(velocity: VelocityFn, x, t, t_next, ids):
    """x + (t' - t) v(x, t): first order, one evaluation a step."""
    return x + _step(t, t_next, ids) * velocity(x, t)


def heun(velocity: VelocityFn, x, t, t_next, ids):
    """The trapezoidal rule with an Euler predictor: second order, two evaluations a step."""
    dt, first = _step(t, t_next, ids), velocity(x, t)
    return x + dt * 0.5 * (first + velocity(x + dt * first, t_next))


def midpoint(velocity: VelocityFn, x, t, t_next, ids):
    """The velocity half-way: second order, two evaluations a step, none of them at t = 0."""
    middle = 0.5 * (t + t_next)
    return x + _step(t, t_next, ids) * velocity(x + _step(t, middle, ids) * velocity(x, t), middle)


SOLVERS = {"euler": euler, "heun": heun, "midpoint": midpoint}


def solve(
    velocity: VelocityFn,
    noise: Float[Array, "B L P"],
    times: Float[Array, "num_times B K"],
    noise_group_ids: Int[Array, "B L"],
    solver: str,
) -> Float[Array, "B L P"]:
    """Samples at t = 0. Known tokens, whose group stays at t = 0, keep the values that `noise` holds for them."""
    step = SOLVERS[solver]

    def body(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return step(velocity, x, *pair, noise_group_ids), None

    return jax.lax.scan(body, noise, (times[:-1], times[1:]))[0]


def guide(
    conditional: Float[Array, "B L P"], unconditional: Float[Array, "B L P"], scale: float | jax.Array
) -> Float[Array, "B L P"]:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): scale 1 is the conditional velocity."""
    return unconditional + scale * (conditional - unconditional)


def _step(t: Float[Array, "B K"], t_next: Float[Array, "B K"], ids: Int[Array, "B L"]) -> Float[Array, "B L 1"]:
    # Not the one-hot product that gathers modulation: time steps must not be rounded to bfloat16.
    return jnp.take_along_axis(t_next - t, ids, axis=1)[..., None]
