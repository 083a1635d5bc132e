"""Solvers of dx/dt = v(x, t) from noise (t = 1) to data (t = 0), as plain functions over packed rows.

Every noise group has its own times, so that samples of different length, and tokens that are known, share a row: all
that a solver sees of a sample's schedule is `times` `[num_times, B, K]`, which fall from wherever the group starts. A
group whose times are all the same never moves.

Euler, Heun and midpoint step along v. The multistep solvers of `multistep.py` call the network once a step too, and
remember what it said before.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sora_jax.diffusion import flow, multistep
from sora_jax.diffusion.multistep import State, VelocityFn, Window, per_token


class Solver(NamedTuple):
    """One step of a method: `(velocity, state, window of times, group of each token) -> state`.

    A state's first array is x; it begins as `1 + memories` copies of x. A step asks for `evaluations` velocities.
    """

    step: Callable[[VelocityFn, State, Window, jax.Array], State]
    evaluations: int
    memories: int = 0


def schedule(
    num_steps: int,
    sample_tokens: Int[Array, "B G"],
    reference_tokens: int,
    shift: float | jax.Array = 0.0,
    starts: Float[Array, "B G"] | None = None,
) -> Float[Array, "num_times B K"]:
    """Uniform times from 1 to 0, shifted towards noise by each sample's number of tokens (`flow.shift`), or all by the
    factor `shift` if that is above 0; known groups stay at 0. A sample whose time `starts` below 1 takes the part of
    this way from there on, in as many steps."""
    factor = jnp.where(shift > 0, shift, flow.shift_factor(sample_tokens, reference_tokens))
    first = 1.0 if starts is None else flow.shift_by(starts, 1.0 / factor)
    noisy = flow.shift_by(jnp.linspace(1.0, 0.0, num_steps + 1)[:, None, None] * first, factor)
    return jnp.stack([noisy, jnp.zeros_like(noisy)], axis=-1).reshape(num_steps + 1, sample_tokens.shape[0], -1)


def solve(
    velocity: VelocityFn,
    noise: Float[Array, "B L P"],
    times: Float[Array, "num_times B K"],
    noise_group_ids: Int[Array, "B L"],
    solver: str,
) -> Float[Array, "B L P"]:
    """Samples at t = 0. Tokens whose group's times never change keep the values that `noise` holds for them, bitwise.

    A step's window is (t_{i-2}, t_{i-1}, t_i, t_{i+1}); what would lie before the start is the start itself.
    """
    method = SOLVERS[solver]
    still = _is_still(times, noise_group_ids)

    def body(state: State, window: Window) -> tuple[State, None]:
        x, *memory = method.step(velocity, state, window, noise_group_ids)
        return (jnp.where(still, noise, x), *memory), None

    padded = jnp.concatenate([times[:1], times[:1], times])
    windows = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    return jax.lax.scan(body, (noise,) * (1 + method.memories), windows)[0][0]


def euler(velocity: VelocityFn, state: State, window: Window, ids: jax.Array) -> State:
    """x + (t' - t) v(x, t): first order, one evaluation a step."""
    (x,), (t, t_next) = state, window[-2:]
    return (x + per_token(t_next - t, ids) * velocity(x, t),)


def heun(velocity: VelocityFn, state: State, window: Window, ids: jax.Array) -> State:
    """The trapezoidal rule with an Euler predictor: second order, two evaluations a step."""
    (x,), (t, t_next) = state, window[-2:]
    dt, first = per_token(t_next - t, ids), velocity(x, t)
    return (x + dt * 0.5 * (first + velocity(x + dt * first, t_next)),)


def midpoint(velocity: VelocityFn, state: State, window: Window, ids: jax.Array) -> State:
    """The velocity half-way: second order, two evaluations a step, none of them at t = 0."""
    (x,), (t, t_next) = state, window[-2:]
    middle = 0.5 * (t + t_next)
    half = x + per_token(middle - t, ids) * velocity(x, t)
    return (x + per_token(t_next - t, ids) * velocity(half, middle),)


SOLVERS: dict[str, Solver] = {
    "euler": Solver(euler, evaluations=1),
    "heun": Solver(heun, evaluations=2),
    "midpoint": Solver(midpoint, evaluations=2),
    "dpm++": Solver(multistep.dpm_solver_pp, evaluations=1, memories=1),
    "unipc": Solver(multistep.unipc, evaluations=1, memories=3),
}


def _is_still(times: Float[Array, "num_times B K"], ids: Int[Array, "B L"]) -> Bool[Array, "B L 1"]:
    return per_token(jnp.all(times == times[0], axis=0), ids)
