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
from data_pipeline.packing import GROUPS_PER_SEGMENT
from sora_jax.diffusion import flow, samplers
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.guidance import Guidance, Kind, guided
from sora_jax.diffusion.samplers import MAX_STEPS
from sora_jax.models.dit import Dit, DitConfig
from sora_jax.models.layers import DTYPES, definition
from sora_jax.models.t5 import T5Config, t5_definition
from sora_jax.parallel import constrain
from sora_jax.types import Batch, Frozen


@dataclass(frozen=True)
class SamplingConfig:
    """`num_steps` counts solver steps, each of one network call or two (`samplers.SOLVERS`).

    `guidance` 1 is no guidance; it acts at times within `guidance_interval` and is rescaled by the share
    `guidance_rescale` (`guidance.py`). `shift` above 0 is the factor of `flow.shift_by` for every sample; 0 takes each
    sample's own, by its tokens.
    """

    num_steps: int = 30
    guidance: float = 6.0
    solver: str = "euler"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.guidance_interval
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise UserError(f"steps is {self.num_steps}, but must be at least 1, and at most {MAX_STEPS}")
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance is {self.guidance}, but must be a finite number; 1 is none")
        if not 0.0 <= low < high <= 1.0:
            raise UserError(
                f"guidance_interval is {low} to {high}, but must be two times, 0 <= low < high <= 1; 0 to 1 is always"
            )
        if not 0.0 <= self.guidance_rescale <= 1.0:
            raise UserError(f"guidance_rescale is {self.guidance_rescale}, but must be from 0, which is none, to 1")
        if not 0.0 <= self.shift < math.inf:
            raise UserError(f"shift is {self.shift}, but must be above 0, or 0 for one that follows a sample's tokens")
        if self.solver not in samplers.SOLVERS:
            raise UserError(f"solver is '{self.solver}', which is none of {', '.join(samplers.SOLVERS)}")

    @property
    def numbers(self) -> Guidance:
        """What guidance a compiled program is given."""
        return Guidance(self.guidance, *self.guidance_interval, self.guidance_rescale)

    @property
    def num_calls(self) -> int:
        """How often the network is called; with and without a prompt are one call."""
        return self.num_steps * samplers.SOLVERS[self.solver].evaluations


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
    """The batch with the features of a frozen text encoder, its own if it brings them, for all that follows; without
    one, the batch itself."""
    if not isinstance(model.text, T5Config):
        return batch
    features = batch.get("text_features")
    if features is None:
        encoder = nnx.merge(t5_definition(model.text), frozen["text_encoder"])
        features = encoder(batch["text_ids"], batch["text_segment_ids"], batch["text_positions"])
    return {**batch, "text_features": features.astype(DTYPES[model.dtype])}


@functools.partial(jax.jit, static_argnames=("model", "cfg", "num_steps", "solver", "kind"))
def sample_rows(
    model: DitConfig,
    cfg: FlowConfig,
    params: Any,
    frozen: Frozen,
    batch: Batch,
    noise: Float[Array, "B L P"],
    guidance: Guidance,
    shift: float | jax.Array,
    empty_text_id: int | jax.Array,
    starts: Float[Array, "B G"] | None = None,
    steps: int | jax.Array | None = None,
    *,
    num_steps: int,
    solver: str,
    kind: Kind,
) -> Float[Array, "B L P"]:
    """Tokens at t = 0 for every row of `batch`, whose known tokens keep their values, bitwise.

    The others start from `noise`, or where `starts` has a time below 1 for their segment, from `batch`'s tokens with
    as much noise. The program makes `num_steps` steps, or any number `steps` up to that: so one serves them all, as it
    serves all numbers of guidance, of which `kind` is the `kind_of`. With guidance a step runs conditional and
    unconditional rows as one batch of 2B.
    """
    start = constrain(begin(batch, noise, starts), "row", "token", None)
    with_prompt = {k: v for k, v in batch.items() if k in NETWORK_INPUTS}
    without = without_text(with_prompt, empty_text_id) | {n: batch[NEGATIVE + n] for n in TEXT if NEGATIVE + n in batch}
    both = paired(with_prompt, without) if kind.is_guided else with_prompt
    both = with_text_features(model, frozen, both)
    with_prompt = {k: v[::2] for k, v in both.items()} if kind.is_guided else both

    def conditional(x: jax.Array, group_times: jax.Array) -> jax.Array:
        return predict_velocity(model, cfg, params, x, group_times, with_prompt)

    def pair(x: jax.Array, group_times: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, group_times = paired((x, group_times), (x, group_times))
        out = predict_velocity(model, cfg, params, x, group_times, both)
        return out[::2], out[1::2]

    ids = batch["noise_group_ids"]
    velocity = guided(conditional, pair, guidance, kind, batch["segment_ids"], ids)
    sizes, room = batch["sample_tokens"], None if steps is None else num_steps
    times = samplers.schedule(num_steps if room is None else steps, sizes, cfg.reference_tokens, shift, starts, room)
    return samplers.solve(velocity, start, times, ids, solver, steps)


def paired(first: Any, second: Any) -> Any:
    """Two batches as one of twice the rows, row by row, so that both of a row stay on the device that holds it."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:]), first, second)


def begin(batch: Batch, noise: Float[Array, "B L P"], starts: Float[Array, "B G"] | None) -> Float[Array, "B L P"]:
    """Where sampling starts: known tokens as they are; the others noise, mixed with their values below time 1."""
    ids = batch["noise_group_ids"]
    if starts is not None:
        t = jnp.take_along_axis(starts, ids // GROUPS_PER_SEGMENT, axis=1)[..., None]
        noise = jnp.where(t < 1.0, flow.corrupt(batch["tokens"], noise, t), noise)
    return jnp.where((ids % GROUPS_PER_SEGMENT == 1)[..., None], batch["tokens"], noise)


TEXT = ("text_ids", "text_segment_ids", "text_positions")
NETWORK_INPUTS = ("segment_ids", "positions", *TEXT, "noise_group_ids")
NEGATIVE = "negative_"
"""Before the names of TEXT in a batch whose guidance leads away from prompts of its own, not from the empty one."""


def without_text(batch: Mapping[str, jax.Array], empty_text_id: int | jax.Array) -> dict[str, jax.Array]:
    """The batch with every caption replaced by the empty one: a single end-of-caption token."""
    slots = jnp.arange(1, batch["text_ids"].shape[1] + 1)[None, :]
    segment_ids = jnp.where(slots <= jnp.max(batch["text_segment_ids"], axis=1, keepdims=True), slots, 0)
    ids = jnp.where(segment_ids > 0, empty_text_id, 0)
    zeros = jnp.zeros_like(batch["text_positions"])
    return {**batch, "text_ids": ids, "text_segment_ids": segment_ids, "text_positions": zeros}
