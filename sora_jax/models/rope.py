"""Rotary positions (Su et al. 2021), factorised over time, row and column for video tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sora_jax.parallel import mesh_platform

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
    return turn_by_product(x, angles) if mesh_platform() == "tpu" else turn_halves(x, angles)


def turn_halves(x: Float[Array, "B L N K"], angles: Angles) -> Float[Array, "B L N K"]:
    """The turn as it is defined."""
    cos, sin = (a[:, :, None, :] for a in angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def turn_by_product(x: Float[Array, "B L N K"], angles: Angles) -> Float[Array, "B L N K"]:
    """The same, bit for bit. What each value takes from the other of its pair comes by a product with a signed
    permutation, which is exact: on a TPU that is one pass through memory together with the norm before, where halves
    that are sliced and put together again are several (LOG.md, "rotary")."""
    cos, sin = (jnp.concatenate([a, a], axis=-1)[:, :, None, :] for a in angles)
    swap = _quarter_turn(x.shape[-1] // 2).astype(x.dtype)
    other = jnp.einsum(
        "BLNK,KJ->BLNJ", x, swap, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return (x.astype(jnp.float32) * cos + other * sin).astype(x.dtype)


def _quarter_turn(half: int) -> Float[Array, "K K"]:
    """(a, b) @ this is (-b, a), for halves a and b of a head."""
    one = jnp.eye(half)
    return jnp.block([[jnp.zeros_like(one), one], [-one, jnp.zeros_like(one)]])


def _frequencies(num: int, theta: float) -> Float[Array, " H"]:
    return theta ** (-jnp.arange(num, dtype=jnp.float32) / num)
