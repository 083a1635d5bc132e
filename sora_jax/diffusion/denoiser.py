"""The trained network as a velocity field, and sampling of packed rows along it."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipeline.errors import UserError
from sora_jax.diffusion import flow, samplers
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.models.dit import Dit, DitConfig
from sora_jax.models.layers import DTYPES, definition
from sora_jax.models.t5 import T5Config, t5_definition
from sora_jax.types import Batch, Frozen


@dataclass(frozen=True)
class SamplingConfig:
    """`guidance` 1 is no guidance; `num_steps` counts solver steps, of one (Euler) or two network calls."""

    num_steps: int = 30
    guidance: float = 6.0
    solver: str = "euler"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"steps is {self.num_steps}, but must be at least 1")
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance is {self.guidance}, but must be a finite number; 1 is none")
        if self.solver not in samplers.SOLVERS:
            raise UserError(f"solver is '{self.solver}', which is none of {', '.join(samplers.SOLVERS)}")


def predict_velocity(
    model: DitConfig,
    cfg: FlowConfig,
    params: Any,
    x_t: Float[Array, "B L P"],
    group_times: Float[Array, "B K"],
    batch: Batch,
) -> Float[Array, "B L P"]:
    """The velocity at `x_t`, whatever the network itself predicts."""
    output = nnx.merge(dit_definition(model), params)(x_t, group_times, batch)
    t = jnp.take_along_axis(group_times, batch["noise_group_ids"], axis=1)[..., None]
    return flow.to_velocity(output, x_t, t, cfg.prediction)


@functools.cache
def dit_definition(model: DitConfig) -> Any:
    """The network without its parameters; traced once for each config."""
    return definition(lambda rngs: Dit(model, rngs))


def with_text_features(model: DitConfig, frozen: Frozen, batch: Batch) -> Batch:
    """The batch with the features of a frozen text encoder, for all that follows; without one, the batch itself."""
    if not isinstance(model.text, T5Config):
        return batch
    encoder = nnx.merge(t5_definition(model.text), frozen["text_encoder"])
    features = encoder(batch["text_ids"], batch["text_segment_ids"], batch["text_positions"])
    return {**batch, "text_features": features.astype(DTYPES[model.dtype])}


@functools.partial(jax.jit, static_argnames=("model", "cfg", "num_steps", "solver", "guided"))
def sample_rows(
    model: DitConfig,
    cfg: FlowConfig,
    params: Any,
    frozen: Frozen,
    batch: Batch,
    noise: Float[Array, "B L P"],
    guidance: Float[Array, ""],
    empty_text_id: int | jax.Array,
    *,
    num_steps: int,
    solver: str,
    guided: bool,
) -> Float[Array, "B L P"]:
    """Tokens at t = 0 for every row of `batch`, whose known tokens keep their values.

    With guidance a step runs conditional and unconditional rows as one batch of 2B.
    """
    known = batch["noise_group_ids"] % 2 == 1
    start = jnp.where(known[..., None], batch["tokens"], noise)
    network_batch = {k: v for k, v in batch.items() if k in NETWORK_INPUTS}
    if guided:
        network_batch = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), network_batch, without_text(network_batch, empty_text_id)
        )

    network_batch = with_text_features(model, frozen, network_batch)

    def velocity(x: jax.Array, group_times: jax.Array) -> jax.Array:
        if not guided:
            return predict_velocity(model, cfg, params, x, group_times, network_batch)
        both = predict_velocity(
            model, cfg, params, jnp.concatenate([x, x]), jnp.concatenate([group_times, group_times]), network_batch
        )
        return samplers.guide(*jnp.split(both, 2), guidance)

    times = samplers.schedule(num_steps, batch["sample_tokens"], cfg.reference_tokens)
    return samplers.solve(velocity, start, times, batch["noise_group_ids"], solver)


NETWORK_INPUTS = ("segment_ids", "positions", "text_ids", "text_segment_ids", "text_positions", "noise_group_ids")


def without_text(batch: Mapping[str, jax.Array], empty_text_id: int | jax.Array) -> dict[str, jax.Array]:
    """The batch with every caption replaced by the empty one: a single end-of-caption token."""
    slots = jnp.arange(1, batch["text_ids"].shape[1] + 1)[None, :]
    segment_ids = jnp.where(slots <= jnp.max(batch["text_segment_ids"], axis=1, keepdims=True), slots, 0)
    ids = jnp.where(segment_ids > 0, empty_text_id, 0)
    zeros = jnp.zeros_like(batch["text_positions"])
    return {**batch, "text_ids": ids, "text_segment_ids": segment_ids, "text_positions": zeros}
