"""Classifier-free guidance as a velocity field: its scale, the interval of times in which it acts, and its rescaling.

    v = v_u + w (v_c - v_u)        (Ho & Salimans 2022, eq. 6, for velocities)

Only times within an interval need it (Kynkäänniemi et al. 2024): near t = 1 it narrows what is drawn, near t = 0 it
does nothing. Outside of the interval the unconditional half is not computed. A large scale makes colours glare;
rescaling (Lin et al. 2023, eq. 15-16) gives the guided velocity the deviation of the conditional one, by a share φ.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sora_jax.diffusion.multistep import VelocityFn, per_token

PairFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(x [B, L, P], group times [B, K]) -> conditional and unconditional velocities [B, L, P]."""


BORDER = 1e-5
"""Programs of other shapes round a time otherwise: without it, a sample would depend on what is packed beside it."""


class Guidance(NamedTuple):
    """The numbers of guidance, which a compiled program takes as arguments: w, the interval of t, and φ."""

    scale: float | jax.Array = 1.0
    low: float | jax.Array = 0.0
    high: float | jax.Array = 1.0
    rescale: float | jax.Array = 0.0


class Kind(NamedTuple):
    """What a program is compiled for, whatever its numbers."""

    is_guided: bool = False
    has_interval: bool = False
    has_rescale: bool = False


def kind_of(guidance: Guidance) -> Kind:
    """The least program that these numbers need. They must be Python's own."""
    is_guided = guidance.scale != 1.0
    covers_all = guidance.low <= 0.0 and guidance.high >= 1.0
    return Kind(is_guided, is_guided and not covers_all, is_guided and guidance.rescale != 0.0)


def guided(
    conditional: VelocityFn,
    pair: PairFn,
    guidance: Guidance,
    kind: Kind,
    segment_ids: Int[Array, "B L"],
    noise_group_ids: Int[Array, "B L"],
) -> VelocityFn:
    """The guided velocity. `conditional` is asked where no group of the batch is within the interval, else `pair`.

    Which of the two is a branch on the device (`lax.cond`), since a sample's times depend on its size: the program
    holds the network twice then.
    """
    if not kind.is_guided:
        return conditional

    def both(x: jax.Array, times: jax.Array) -> jax.Array:
        v_c, v_u = pair(x, times)
        v = guide(v_c, v_u, guidance.scale)
        if kind.has_rescale:
            v = rescale(v, v_c, guidance.rescale, segment_ids, noise_group_ids, times.shape[1])
        if kind.has_interval:
            v = jnp.where(per_token(is_within(times, guidance), noise_group_ids), v, v_c)
        return v

    if not kind.has_interval:
        return both
    # Padding has group 0, and so have the noisy tokens of segment 1; a known group's time is 0 all along.
    is_noisy = _is_noisy(segment_ids, noise_group_ids)[..., None]

    def where_needed(x: jax.Array, times: jax.Array) -> jax.Array:
        needed = jnp.any(per_token(is_within(times, guidance), noise_group_ids) & is_noisy)
        return jax.lax.cond(needed, both, conditional, x, times)

    return where_needed


def guide(
    conditional: Float[Array, "B L P"], unconditional: Float[Array, "B L P"], scale: float | jax.Array
) -> Float[Array, "B L P"]:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): scale 1 is the conditional velocity."""
    return unconditional + scale * (conditional - unconditional)


def is_within(times: Float[Array, "B K"], guidance: Guidance) -> jax.Array:
    """Whether a group's time lies in [low, high]; a time computed as a border lies within, however it was rounded."""
    return (times >= guidance.low - BORDER) & (times <= guidance.high + BORDER)


def rescale(
    v: Float[Array, "B L P"],
    conditional: Float[Array, "B L P"],
    share: float | jax.Array,
    segment_ids: Int[Array, "B L"],
    noise_group_ids: Int[Array, "B L"],
    num_groups: int,
) -> Float[Array, "B L P"]:
    """φ v std(v_c) / std(v) + (1 - φ) v (Lin et al. 2023, eq. 15-16); the deviations are of a sample's noisy tokens."""
    weights = jax.nn.one_hot(noise_group_ids, num_groups) * _is_noisy(segment_ids, noise_group_ids)[..., None]
    ratio = _deviation(conditional, weights, noise_group_ids) / jnp.maximum(
        _deviation(v, weights, noise_group_ids), jnp.finfo(jnp.float32).tiny
    )
    return v * per_token(share * ratio + (1.0 - share), noise_group_ids)


def _deviation(x: Float[Array, "B L P"], weights: Float[Array, "B L K"], ids: Int[Array, "B L"]) -> Float[Array, "B K"]:
    """Of each group's values, from their mean; float32 sums, on a TPU too."""

    def mean(values: Float[Array, "B L"]) -> Float[Array, "B K"]:
        totals = jnp.einsum("BLK,BL->BK", weights, values, precision=jax.lax.Precision.HIGHEST)
        return totals / jnp.maximum(weights.sum(1), 1.0)

    centred = x - per_token(mean(x.mean(-1)), ids)
    return jnp.sqrt(mean(jnp.square(centred).mean(-1)))


def _is_noisy(segment_ids: Int[Array, "B L"], noise_group_ids: Int[Array, "B L"]) -> jax.Array:
    return (segment_ids > 0) & (noise_group_ids % 2 == 0)
