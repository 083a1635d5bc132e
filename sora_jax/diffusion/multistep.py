"""Multistep solvers that integrate x_0 = x - t v in λ = log((1 - t) / t): DPM-Solver++(2M) and UniPC.

With h = λ' - λ, α = 1 - t and σ = t, the exact solution of the flow is (Lu et al. 2022b, proposition 4.1)

    x' = (t' / t) x + t' ∫ e^λ x_0(λ) dλ    from λ to λ',

and where x_0 is one estimate D over the step, an interpolation: x' = (t' / t) x + (1 - t' / t) D, since
-α' (e^{-h} - 1) = 1 - t' / t. With D = x_0(x, t) that is Euler's step. These methods call the network once a step and
put what it said before into D, by the ratio k of this step's h to the last one's.

Both ends are limits, taken exactly. At t = 1, λ is -∞: what the network said there is infinitely far away, k = 0. At
t' = 0, h is ∞: the step ends at D = x_0(x, t), of first order, as both papers end.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from sora_jax.diffusion import flow

VelocityFn = Callable[[jax.Array, jax.Array], jax.Array]
"""(x [B, L, P], group times [B, K]) -> velocity [B, L, P]."""
State = tuple[jax.Array, ...]
Window = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Group times [B, K] at the step before the last, the last, the present one, and where this step goes."""


def per_token(values: Shaped[Array, "B K"], ids: Int[Array, "B L"]) -> Shaped[Array, "B L 1"]:
    """Each token's value of its group. Not the one-hot product that gathers modulation: steps in time must not be
    rounded to bfloat16."""
    return jnp.take_along_axis(values, ids, axis=1)[..., None]


def dpm_solver_pp(velocity: VelocityFn, state: State, window: Window, ids: jax.Array) -> State:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order."""
    (x, before), (_, t_before, t, t_next) = state, window
    clean = _clean(velocity, x, t, ids)
    k = per_token(step_ratio(t_before, t, t_next), ids)
    return _towards(clean + 0.5 * k * (clean - before), x, t, t_next, ids), clean


def unipc(velocity: VelocityFn, state: State, window: Window, ids: jax.Array) -> State:
    """UniPC of order 2 with B(h) = e^h - 1 (Zhao et al. 2023, algorithms 1 and 2, in data prediction).

    The predictor is DPM-Solver++(2M)'s step. What the network says at the prediction first corrects that prediction
    (UniC-2), then serves the next one: one evaluation a step.
    """
    (predicted, x, before, older), (t_older, t_before, t, t_next) = state, window
    clean = _clean(velocity, predicted, t, ids)
    weight_new, weight_old = (per_token(w, ids) for w in corrector_weights(t_older, t_before, t))
    estimate = before + weight_new * (clean - before) + weight_old * (before - older)
    can_correct = per_token((t > 0) & (t < t_before), ids)
    x = jnp.where(can_correct, _towards(estimate, x, t_before, t, ids), predicted)
    k = per_token(step_ratio(t_before, t, t_next), ids)
    return _towards(clean + 0.5 * k * (clean - before), x, t, t_next, ids), x, clean, before


def step_ratio(
    t_before: Float[Array, "B K"], t: Float[Array, "B K"], t_next: Float[Array, "B K"]
) -> Float[Array, "B K"]:
    """k = h / h_before, which the memory weighs; 0 where there is none, and where either step is infinite."""
    h, h_before = log_snr(t_next) - log_snr(t), log_snr(t) - log_snr(t_before)
    is_usable = jnp.isfinite(h) & _is_step(h_before)
    return jnp.where(is_usable, h / jnp.where(is_usable, h_before, 1.0), 0.0)


def corrector_weights(
    t_older: Float[Array, "B K"], t_before: Float[Array, "B K"], t: Float[Array, "B K"]
) -> tuple[Float[Array, "B K"], Float[Array, "B K"]]:
    """Of UniC-2's estimate D = D_1 + w_new (D_t - D_1) + w_old (D_1 - D_2): the solution of its two equations.

    With B(h) = e^h - 1 their right-hand sides are b_1 = (1 + L) / 2 and b_1 - b_2 = L / h, where L = coth(h/2) - 2/h,
    so that w_old = k² / (1 + k) L / h and w_new = b_1 - w_old / k. Small steps of one size: 5/12 and 1/12, which is
    Adams-Moulton. Without a memory UniC-1 has w_new = 1/2.
    """
    h = log_snr(t) - log_snr(t_before)
    k, has_memory = step_ratio(t_older, t_before, t), _is_step(log_snr(t_before) - log_snr(t_older))
    langevin, over_h = _langevin(jnp.where(h > 0, h, 1.0))
    shared = jnp.where(has_memory, over_h * k / (1.0 + k), 0.0)
    return jnp.where(has_memory, 0.5 * (1.0 + langevin) - shared, 0.5), k * shared


def log_snr(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """λ = log((1 - t) / t): -∞ at t = 1, ∞ at t = 0."""
    return jnp.log1p(-jnp.minimum(t, 1.0)) - jnp.log(t)  # a division that rounds up must not make a NaN of t = 1


def _is_step(h: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether h is that of a step, of any length: before the start there is none, and two ends at ∞ make no number."""
    return h > 0


def _langevin(h: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """L = coth(h/2) - 2/h and L / h, by their series where the difference would cancel."""
    y = 0.5 * jnp.minimum(h, 1.0)
    series = y / 3 - y**3 / 45 + 2 * y**5 / 945 - y**7 / 4725
    value = jnp.where(h < 1.0, series, 1.0 / jnp.tanh(0.5 * h) - 2.0 / h)
    return value, value / h


def _clean(velocity: VelocityFn, x: jax.Array, t: jax.Array, ids: jax.Array) -> jax.Array:
    return flow.to_x_0(velocity(x, t), x, per_token(t, ids))


def _towards(estimate: jax.Array, x: jax.Array, t: jax.Array, t_next: jax.Array, ids: jax.Array) -> jax.Array:
    """x' = (t' / t) x + (1 - t' / t) D; a group at t = 0 has arrived."""
    ratio = per_token(jnp.where(t > 0, t_next / jnp.where(t > 0, t, 1.0), 1.0), ids)
    return ratio * x + (1.0 - ratio) * estimate
