"""Weight products in 8 bits: int8 as in SwitchBack (Wortsman et al. 2023, arXiv 2304.13013), or fp8 with e4m3 for
activations and weights and e5m2 for gradients (Micikevicius et al. 2022, arXiv 2209.05433).

The product and the gradient of its activations are computed in 8 bits; the weights' gradient, which sums over all
tokens of the batch, stays in the dtype of the activations. Scales are found anew each time: one for each token and one
for each output of the weights, so that nothing is carried from step to step. Parameters and optimizer do not change.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Axes = tuple[int, ...]
DotGeneral = Callable[..., jax.Array]

TINY = 1e-12
"""The least scale: rows of zeros stay zeros."""


def use_matmul(kind: str, *modules: nnx.Module) -> None:
    """Lets every linear layer of these modules multiply in `kind`, one of MATMULS."""
    for module in modules:
        for _, part in nnx.iter_modules(module):
            if isinstance(part, nnx.Linear | nnx.LinearGeneral):
                part.dot_general = MATMULS[kind]


def dot_in(forward: Any, backward: Any) -> DotGeneral:
    """What a linear layer takes for `jax.lax.dot_general`, with activations and weights in the dtype `forward` and
    gradients in `backward`. The last dims of the activations meet the first of the weights, in their order."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def dot(x: jax.Array, w: jax.Array, contracted: int) -> jax.Array:
        return _dot(x, w, _last(x, contracted), _first(contracted), (forward, forward))

    def forwards(x: jax.Array, w: jax.Array, contracted: int) -> tuple[jax.Array, Any]:
        return dot(x, w, contracted), (x, w)

    def backwards(contracted: int, saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, w = saved
        outputs = tuple(range(contracted, w.ndim))
        of_x = _dot(g, w, _last(g, len(outputs)), outputs, (backward, forward))
        tokens = _first(x.ndim - contracted)
        of_w = jax.lax.dot_general(x, g, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32)
        return of_x.astype(x.dtype), of_w.astype(w.dtype)

    dot.defvjp(forwards, backwards)

    def dot_general(x: jax.Array, w: jax.Array, dims: Any, **_: Any) -> jax.Array:
        (x_axes, w_axes), batched = dims
        legal = _last(x, len(x_axes)), _first(len(w_axes))
        if any(batched) or (tuple(x_axes), tuple(w_axes)) != legal:
            raise ValueError(f"no product in 8 bits is written for the dims {dims}")
        return dot(x, w, len(w_axes))

    return dot_general


def quantise(x: Float[Array, "..."], axes: Axes, kind: Any) -> tuple[jax.Array, Float[Array, "..."]]:
    """(`x` in 8 bits, its float32 scale): one scale for all values along `axes`, which stay as dims of size 1."""
    wide = x.astype(jnp.float32)
    is_integer = jnp.issubdtype(kind, jnp.integer)
    limit = float(jnp.iinfo(kind).max) if is_integer else float(jnp.finfo(kind).max)
    scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=axes, keepdims=True), TINY) / limit
    scaled = jnp.clip(wide / scale, -limit, limit)
    return (jnp.round(scaled) if is_integer else scaled).astype(kind), scale


def _dot(x: jax.Array, w: jax.Array, x_axes: Axes, w_axes: Axes, kinds: tuple[Any, Any]) -> jax.Array:
    """The product over these axes, in the dtype of `x`."""
    (small_x, of_x), (small_w, of_w) = quantise(x, x_axes, kinds[0]), quantise(w, w_axes, kinds[1])
    wide = jnp.int32 if jnp.issubdtype(kinds[0], jnp.integer) else jnp.float32
    total = jax.lax.dot_general(small_x, small_w, ((x_axes, w_axes), ((), ())), preferred_element_type=wide)
    of_w = jnp.squeeze(of_w, w_axes)
    of_x = jnp.squeeze(of_x, x_axes)[(...,) + (None,) * of_w.ndim]
    return (total.astype(jnp.float32) * of_x * of_w).astype(x.dtype)


def _last(x: jax.Array, count: int) -> Axes:
    return tuple(range(x.ndim - count, x.ndim))


def _first(count: int) -> Axes:
    return tuple(range(count))


MATMULS: dict[str, DotGeneral] = {
    "full": jax.lax.dot_general,
    "int8": dot_in(jnp.int8, jnp.int8),
    "fp8": dot_in(jnp.float8_e4m3fn, jnp.float8_e5m2),
}
"""How linear layers multiply; `full`: in the dtype of their activations."""
