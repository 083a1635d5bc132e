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
from jaxtyping import Array, Float, Int

from sora_jax.diffusion import flow, multistep
from sora_jax.diffusion.multistep import State, VelocityFn, Window, per_token


class Solver(NamedTuple):
    """One step of a method: `(velocity, state, window of times, group of each token) -> state`.

    A state's first array is x; it begins as `1 + memories` copies of x. A step asks for `evaluations` velocities.
    """

    step: Callable[[VelocityFn, State, Window, jax.Array], State]
    evaluations: int
    memories: int = 0


MAX_STEPS = 1000
"""A compiled program has room for so many times: it then takes any number of steps."""


def schedule(
    num_steps: int | jax.Array,
    sample_tokens: Int[Array, "B G"],
    reference_tokens: int,
    shift: float | jax.Array = 0.0,
    starts: Float[Array, "B G"] | None = None,
    room: int | None = None,
) -> Float[Array, "num_times B K"]:
    """Uniform times from 1 to 0, shifted towards noise by each sample's number of tokens (`flow.shift`), or all by the
    factor `shift` if that is above 0; known groups stay at 0. A sample whose time `starts` below 1 takes the part of
    this way from there on, in as many steps. With `room` for more steps the last time, 0, is repeated."""
    factor = jnp.where(shift > 0, shift, flow.shift_factor(sample_tokens, reference_tokens))
    first = 1.0 if starts is None else flow.shift_by(starts, 1.0 / factor)
    step = jnp.arange(1 + (num_steps if room is None else room))
    uniform = jnp.where(step < num_steps, 1.0 - step / num_steps, 0.0)
    noisy = flow.shift_by(uniform[:, None, None] * first, factor)
    return jnp.stack([noisy, jnp.zeros_like(noisy)], axis=-1).reshape(len(step), sample_tokens.shape[0], -1)


def solve(
    velocity: VelocityFn,
    noise: Float[Array, "B L P"],
    times: Float[Array, "num_times B K"],
    noise_group_ids: Int[Array, "B L"],
    solver: str,
    num_steps: int | jax.Array | None = None,
) -> Float[Array, "B L P"]:
    """Samples at t = 0. Tokens whose group's times never change keep the values that `noise` holds for them, bitwise.

    A step's window is (t_{i-2}, t_{i-1}, t_i, t_{i+1}); what would lie before the start is the start itself. All times
    are gone through, or the first `num_steps`, a number that a compiled program may take as an argument.
    """
    method = SOLVERS[solver]
    still = per_token(jnp.all(times == times[0], axis=0), noise_group_ids)

    def advance(i: jax.Array, state: State) -> State:
        older, before, now, after = (times[jnp.maximum(i + offset, 0)] for offset in (-2, -1, 0, 1))
        x, *memory = method.step(velocity, state, (older, before, now, after), noise_group_ids)
        return jnp.where(still, noise, x), *memory

    num_steps = len(times) - 1 if num_steps is None else num_steps
    return jax.lax.fori_loop(0, num_steps, advance, (noise,) * (1 + method.memories))[0]


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
