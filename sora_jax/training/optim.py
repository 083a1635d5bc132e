"""Optimizers as pure pairs: AdamW and Muon, schedules with warm-up, decoupled weight decay, clipping.

A path and a shape decide what an optimizer does with a parameter:

- parameters under `blocks` are stacked `(layer, ...)`: their first dim is a batch of weights, never part of one;
- matrices decay; biases, norms, embeddings and tables do not;
- Muon orthogonalises the matrices between the model's two ends; all else (and both ends) follows Adam.

Muon's update is scaled to AdamW's usual size (root mean square 0.2, arXiv:2502.16982), so that one learning rate and
one weight decay serve both. The learning rate is a function of the training step, not of the number of applied
updates: a skipped step moves the schedule on, as it moves the data on.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from sora_jax.config import OptimConfig, choose
from sora_jax.parallel import path_of

# The autoencoder's blocks have names of their own (`blocks/stage_0/block_1`): nothing of them is stacked.
STACKED = re.compile(r"(^|/)(cross_)?blocks(/(?!stage_)|$)")
NO_DECAY = re.compile(r"bias|scale|norm|embedding|table")
NOT_MUON = re.compile(r"bias|scale|norm|embedding|table|patch_in|patch_out")
INPUT_DIM_FIRST = re.compile(r"(query|key|value|qkv)(/|$)")
MUON_RMS = 0.2

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]

SHAPES: dict[str, Callable[[Any], Any]] = {
    "constant": jnp.ones_like,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1 - progress,
}
"""Fraction of the way from the end of the warm-up to the last step -> fraction of the peak above the final rate."""


class Optimizer(NamedTuple):
    """`init(params) -> state`; `update(gradient, state, params, step) -> (change of params, state)`."""

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any, Int[Array, ""]], tuple[Any, Any]]
    learning_rate: Schedule
    clip_norm: float


def make_schedule(config: OptimConfig, num_steps: int) -> Schedule:
    """The learning rate at each step. Raises UserError for an unknown schedule."""
    shape = choose(SHAPES, config.schedule, "config.optim.schedule")
    final = 1.0 if config.schedule == "constant" else config.final_fraction

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        step = step.astype(jnp.float32)
        warm = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
        progress = jnp.clip((step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1), 0.0, 1.0)
        return config.learning_rate * warm * (final + (1 - final) * shape(progress))

    return schedule


def make_optimizer(config: OptimConfig, num_steps: int) -> Optimizer:
    """The optimizer of one parameter group. Raises UserError for an unknown optimizer or schedule."""
    scale = choose({"adamw": _scale_by_adam, "muon": _scale_by_muon}, config.optimizer, "config.optim.optimizer")
    direction = optax.chain(scale(config), optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    schedule = make_schedule(config, num_steps)

    def update(gradient: Any, state: Any, params: Any, step: Int[Array, ""]) -> tuple[Any, Any]:
        ascent, state = direction.update(gradient, state, params)
        rate = schedule(step)
        return jax.tree.map(lambda u: -rate * u, ascent), state

    return Optimizer(direction.init, update, schedule, config.clip_norm)


def clip_by_norm(gradient: Any, norm: Float[Array, ""], limit: float) -> Any:
    """`gradient` scaled so that its global norm is at most `limit`; 0 or less clips nothing."""
    if limit <= 0:
        return gradient
    factor = jnp.minimum(1.0, limit / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(lambda g: g * factor, gradient)


def decay_mask(params: Any) -> Any:
    """True for the weights that decay: matrices (after the stacked dim) that are no bias, norm, embedding or table."""

    def decays(keys: tuple[Any, ...], leaf: Any) -> bool:
        path = path_of(keys)
        return _rank(path, leaf) >= 2 and not NO_DECAY.search(path)

    return jax.tree_util.tree_map_with_path(decays, params)


def muon_dims(path: str, leaf: Any) -> MuonDimensionNumbers | None:
    """Which dims of a weight are its input and its output; None for one that follows Adam.

    `(D, N, K)` queries, keys and values read one dim and write heads; every other weight (`(N, K, D)` attention
    outputs, `(Y, X, C, C)` convolutions) writes its last dim and reads all others.
    """
    rank = _rank(path, leaf)
    if rank < 2 or NOT_MUON.search(path):
        return None
    dims = tuple(range(leaf.ndim - rank, leaf.ndim))
    split = 1 if INPUT_DIM_FIRST.search(path) else rank - 1
    return MuonDimensionNumbers(dims[:split], dims[split:])


def _scale_to_adam(keys: tuple[Any, ...], update: Array) -> Array:
    """An orthogonal (I, O) matrix has a root mean square of 1 / sqrt(max(I, O)); this one gets MUON_RMS."""
    dims = muon_dims(path_of(keys), update)
    assert dims is not None, "Muon's part of the partition holds only what muon_dims chose"
    sizes = [math.prod(update.shape[d] for d in side) for side in dims]
    return MUON_RMS * math.sqrt(max(sizes)) * update


def _rank(path: str, leaf: Any) -> int:
    """The number of dims of one weight, without the dim that stacks layers."""
    return leaf.ndim - 1 if STACKED.search(path) else leaf.ndim


def _scale_by_adam(config: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.moment_dtype)


def _scale_by_muon(config: OptimConfig) -> optax.GradientTransformation:
    def dims(updates: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda keys, leaf: muon_dims(path_of(keys), leaf), updates)

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: "adam" if muon_dims(path_of(keys), leaf) is None else "muon", params
        )

    muon = optax.chain(
        scale_by_muon(
            beta=config.muon_momentum,
            eps=config.eps,
            mu_dtype=config.moment_dtype,
            weight_dimension_numbers=dims,
        ),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_scale_to_adam, updates)),
    )
    return optax.partition({"muon": muon, "adam": _scale_by_adam(config)}, labels)
