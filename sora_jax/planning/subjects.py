"""What a plan compiles: the task of a config and the shapes of its batch, without any data.

What only data can tell is an option of the plan: the latents' channels and the tokenizer's size.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from data_pipeline.errors import UserError
from data_pipeline.stream import spec as batch_spec
from sora_jax import flops
from sora_jax.config import OptimConfig, TrainConfig, build_config, check_sections
from sora_jax.diffusion.generation import DiffusionConfig
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.dit import DitConfig, forward_flops
from sora_jax.objectives import diffusion
from sora_jax.objectives.data_stages import flow_config, one_stage, stream_config
from sora_jax.objectives.frozen_text import cached_width
from sora_jax.objectives.synthetic import random_frozen
from sora_jax.planning.published import with_published_encoder
from sora_jax.types import Task

BLOCK_PARTS = ("self_attention", "cross_attention", "mlp", "modulation")


@dataclass(frozen=True)
class Assumptions:
    """What the data would say. Rows are full, of `segments` equal clips with equal captions."""

    latent_channels: int = 16
    vocab_size: int = 32_128
    segments: int = 4


@dataclass(frozen=True)
class Subject:
    """A task with the shapes of its global batch. FLOPs are of one step on all devices: `useful_flops` by the project's
    convention, `recomputed_flops` what rematerialisation adds to them. `tokens` of a step are an autoencoder's pixels:
    `unit` says which."""

    task: Task
    train: TrainConfig
    model: DitConfig | AutoencoderConfig
    batch: dict[str, jax.ShapeDtypeStruct]
    tokens: int
    useful_flops: float
    recomputed_flops: float
    mix: str
    unit: str = "tokens"

    @property
    def remat(self) -> str:
        """What the backward pass finds saved; an autoencoder has everything."""
        return getattr(self.model, "remat", "none")

    @property
    def dit(self) -> DitConfig:
        """The model of a generator."""
        assert isinstance(self.model, DitConfig), "only a generator's step is asked for its network's sizes"
        return self.model


def diffusion_subject(config: Mapping[str, Any], assumed: Assumptions) -> Subject:
    """The generator's training step of a run's config (its last stage, unless it is cut to one).

    Raises UserError for a config that `train` would refuse.
    """
    check_sections(config, required=("data", "model", "optim", "train"), optional=("flow", "preview"))
    config = one_stage(config)
    train = build_config(TrainConfig, config["train"], "config.train")
    if train.task != "diffusion":
        raise UserError(f"the config trains the task '{train.task}', but a generator's (diffusion) is needed here")
    stream = stream_config(config)
    with with_published_encoder(config["model"]) as described:
        patch_values = stream.layout(assumed.latent_channels).patch_values
        model = diffusion.model_config(described, patch_values, assumed.vocab_size)
    cfg = DiffusionConfig(model, flow_config(config))
    optim = build_config(OptimConfig, config["optim"], "config.optim")
    text_width = cached_width(stream, model.text)
    frozen = {} if text_width else jax.eval_shape(functools.partial(random_frozen, model.text))
    shapes = batch_spec(stream, assumed.latent_channels, text_width=text_width)
    batch = {name: jax.ShapeDtypeStruct(*value) for name, value in shapes.items() if name != "num_unreadable"}
    segments = min(assumed.segments, stream.row_segments)
    lengths = flops.equal_parts(stream.row_tokens, segments), flops.equal_parts(stream.row_text, segments)
    parts = forward_flops(model, *lengths, is_text_cached=text_width > 0)
    parts = {name: value * train.batch_rows for name, value in parts.items()}
    return Subject(
        task=diffusion.make_task(cfg, optim, frozen),
        train=train,
        model=model,
        batch=batch,
        tokens=train.batch_rows * stream.row_tokens,
        useful_flops=diffusion.training_flops(parts),
        recomputed_flops=recomputed(parts, model.remat, lengths, train.batch_rows, model),
        mix=f"{segments} equal clips a row of {stream.row_tokens} video and {stream.row_text} text tokens, no padding",
    )


def recomputed(
    parts: Mapping[str, float], remat: str, lengths: tuple[list[int], list[int]], rows: int, model: DitConfig
) -> float:
    """FLOPs of the backward pass's second forward pass: of the blocks whole, or (`dots`) of attention alone."""
    if remat == "none":
        return 0.0
    if remat == "dots":
        video, text = lengths
        one = flops.attention(video, video, model.width) + flops.attention(video, text, model.width)
        return rows * model.depth * one
    return sum(parts[name] for name in BLOCK_PARTS)
