"""The exponential moving average of the parameters, kept in float32 beside them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def init_ema(params: Any) -> Any:
    """The average starts at the initial parameters, in arrays of its own (the step donates both)."""
    return jax.tree.map(jnp.copy, params)


def decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """`decay`, approached as (1 + step) / (10 + step) so that a short run's average forgets the random start."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update_ema(ema: Any, params: Any, decay: Float[Array, ""]) -> Any:
    """`ema + (1 - decay) * (params - ema)`, leaf by leaf."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
