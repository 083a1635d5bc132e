"""The generator's task without its data, and batches of its shapes: what a measurement of speed needs.

Rows are full: clips of one length, each with a caption of one length, all values random.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.packing import Row, RowLayout, SampleInput, pack_row, stack_rows
from sora_jax.config import OptimConfig, TrainConfig, build_config, check_sections
from sora_jax.diffusion.generation import DiffusionConfig
from sora_jax.models.layers import initialise
from sora_jax.models.t5 import T5Config, T5Encoder
from sora_jax.objectives.data_stages import flow_config, one_stage, stream_config
from sora_jax.objectives.diffusion import make_task, model_config
from sora_jax.objectives.frozen_text import cached_width
from sora_jax.parallel import check_tokens
from sora_jax.types import Frozen, Task

FPS, COMPRESSION = 24.0, 4
"""Frames a second of the synthetic clips, and frames in a latent one: they only place tokens in time."""


@dataclass(frozen=True)
class DataSizes:
    """What a run learns from its data. `segments` clips fill a row; `text_tokens` of 0 fills the text row with their
    captions."""

    latent_channels: int = 16
    vocab_size: int = 8192
    segments: int = 1
    text_tokens: int = 0

    def __post_init__(self) -> None:
        least = self.latent_channels, self.vocab_size - 1, self.segments, self.text_tokens + 1
        if min(least) < 1:
            raise UserError(
                f"latent_channels={self.latent_channels} and segments={self.segments} must be at least 1, vocab_size="
                f"{self.vocab_size} at least 2, and text_tokens={self.text_tokens} at least 0"
            )


@dataclass(frozen=True)
class Synthetic:
    """A generator's run without data: `task` is the real one, its frozen text encoder (if any) has random weights."""

    task: Task
    train: TrainConfig
    optim: OptimConfig
    config: DiffusionConfig
    layout: RowLayout
    sizes: DataSizes

    @property
    def clip_tokens(self) -> int:
        return self.layout.row_tokens // self.sizes.segments

    @property
    def text_tokens(self) -> int:
        return self.sizes.text_tokens or self.layout.row_text // self.sizes.segments

    def batch(self, num_rows: int | None = None) -> Row:
        """`num_rows` rows (default: the global batch); the same values each time."""
        rng = np.random.default_rng(0)
        rows = self.train.batch_rows if num_rows is None else num_rows
        return stack_rows([pack_row(self._samples(rng), self.layout) for _ in range(rows)])

    def mix(self) -> dict[str, int]:
        """What a row holds, for a measurement to state."""
        return {
            "segments_per_row": self.sizes.segments,
            "tokens_per_segment": self.clip_tokens,
            "text_tokens_per_segment": self.text_tokens,
        }

    def _samples(self, rng: np.random.Generator) -> list[SampleInput]:
        _, height, width = self.layout.patch_size
        shape, samples = (self.clip_tokens, height, width), []
        for _ in range(self.sizes.segments):
            latents = rng.standard_normal((*shape, self.layout.channels), np.float32)
            ids = rng.integers(1, self.sizes.vocab_size, self.text_tokens).tolist()
            width = self.layout.text_width
            features = rng.standard_normal((len(ids), width), np.float32) if width else None
            samples.append(SampleInput(shape, FPS, COMPRESSION, ids, latents, text_features=features))
        return samples


def without_data(config: Mapping[str, Any], sizes: DataSizes) -> Synthetic:
    """The task of a generator's config (its last stage, unless it is cut to one).

    Raises UserError for another task, and for clips that do not fill its rows.
    """
    check_sections(config, required=("data", "model", "optim", "train"), optional=("flow", "preview"))
    config = one_stage(config)
    train = build_config(TrainConfig, config["train"], "config.train")
    if train.task != "diffusion":
        raise UserError(f"config.train.task is '{train.task}', but only a generator ('diffusion') is measured here")
    optim = build_config(OptimConfig, config["optim"], "config.optim")
    stream = stream_config(config)
    layout = stream.layout(sizes.latent_channels)
    _check_fit(layout, sizes)
    check_tokens(train.mesh, layout.row_tokens)
    model = model_config(config["model"], layout.patch_values, sizes.vocab_size)
    cfg, text_width = DiffusionConfig(model, flow_config(config)), cached_width(stream, model.text)
    task = make_task(cfg, optim, {} if text_width else random_frozen(model.text))
    return Synthetic(task, train, optim, cfg, stream.layout(sizes.latent_channels, text_width), sizes)


def random_frozen(text: Any) -> Frozen:
    """What the task reads and never trains, with random weights: a frozen text encoder, if it has one."""
    if not isinstance(text, T5Config):
        return {}
    make = jax.jit(lambda key: initialise(lambda rngs: T5Encoder(text, rngs), key))
    return {"text_encoder": make(jax.random.key(0))}


def _check_fit(layout: RowLayout, sizes: DataSizes) -> None:
    most = min(layout.row_segments, layout.row_tokens, layout.row_text)
    if sizes.segments > most:
        raise UserError(f"{sizes.segments} segments do not fit a row, which holds {most}")
    if sizes.segments * sizes.text_tokens > layout.row_text:
        raise UserError(
            f"{sizes.segments} captions of {sizes.text_tokens} tokens are {sizes.segments * sizes.text_tokens}, but a "
            f"row holds {layout.row_text} (config.data.row_text)"
        )
