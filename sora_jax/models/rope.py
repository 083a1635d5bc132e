"""Rotary positions (Su et al. 2021), factorised over time, row and column for video tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Angles = tuple[Float[Array, "B L H"], Float[Array, "B L H"]]
"""Cosines and sines, `H` = head width / 2, float32."""


def rotary_1d(positions: Float[Array, "B S"], head_width: int, theta: float) -> Angles:
    """Angles of text positions: pair i turns by position x theta^(-2i / head_width)."""
    angles = positions[..., None] * _frequencies(head_width // 2, theta)
    return jnp.cos(angles), jnp.sin(angles)


def rotary_3d(positions: Float[Array, "B L 3"], head_width: int, theta: float) -> Angles:
    """Angles of (time, row, column): the pairs of a head are split among the three, time taking what is left over."""
    space = head_width // 6
    pairs = (head_width // 2 - 2 * space, space, space)
    angles = jnp.concatenate([positions[..., i, None] * _frequencies(n, theta) for i, n in enumerate(pairs)], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B L N K"], angles: Angles) -> Float[Array, "B L N K"]:
    """Turns the pairs (x_i, x_{i + K/2}) of every head by the token's angles, in float32."""
    cos, sin = (a[:, :, None, :] for a in angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def _frequencies(num: int, theta: float) -> Float[Array, " H"]:
    return theta ** (-jnp.arange(num, dtype=jnp.float32) / num)
