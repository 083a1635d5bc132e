"""How large parameters and activations are, block by block: the rows of kind `norms`, one at each evaluation.

The gradient's norm is part of every step. These are not: they cost a pass over the parameters and one of the network.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sora_jax.config import TrainConfig
from sora_jax.training.step import EVAL_KEY, TrainState, fold_seed
from sora_jax.types import Batch, Frozen, Params, Task

STACKED = "blocks"
"""Parameters under this name have a leading `layer` dim."""


def parameter_norms(params: Params) -> dict[str, Array]:
    """The 2-norm of each parameter group, of each of its parts, and of each layer of stacked blocks."""
    norms = {}
    for group, parts in params.items():
        norms[f"param_norm/{group}"] = optax.tree.norm(parts)
        for name, part in parts.items() if isinstance(parts, Mapping) else ():
            norms[f"param_norm/{group}/{name}"] = _by_layer(part) if name == STACKED else optax.tree.norm(part)
    return norms


def _by_layer(stacked: Any) -> Float[Array, " layer"]:
    squares = [jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(stacked)]
    return jnp.sqrt(sum(squares))


def make_norms(task: Task, config: TrainConfig, shardings: TrainState) -> Callable[..., dict[str, float]]:
    """`norms(params, frozen, batch)`: of the parameters, and of the task's activations unless `batch` is None."""
    replicated = NamedSharding(shardings.step.mesh, PartitionSpec())
    of_parameters = jax.jit(parameter_norms, out_shardings=replicated)

    def activations(params: Params, frozen: Frozen, batch: Batch) -> dict[str, Array]:
        return task.activations(params, frozen, batch, fold_seed(config.seed, EVAL_KEY)) if task.activations else {}

    of_activations = jax.jit(activations, out_shardings=replicated)

    def norms(params: Params, frozen: Frozen, batch: Batch | None) -> dict[str, float]:
        found = of_parameters(params)
        if batch is not None:
            found |= of_activations(params, frozen, batch)
        return flatten(jax.device_get(found))

    return norms


def flatten(norms: Mapping[str, np.ndarray]) -> dict[str, float]:
    """One number a name: a layer's number, with leading zeros, follows the name of its blocks."""
    flat: dict[str, float] = {}
    for name, value in norms.items():
        if np.ndim(value) == 0:
            flat[name] = float(value)
        else:
            width = len(str(len(value) - 1))
            flat |= {f"{name}/{i:0{width}d}": float(x) for i, x in enumerate(value)}
    return flat
