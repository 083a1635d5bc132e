"""A plan of sampling: every solver step of a batch of clips as one program, on a mesh, without a trained run.

It is the program of `sample`, `sample_rows`, with the shardings of `diffusion/sharding.py`. A clip is one segment of
one row, and rows are filled up to a multiple of those that the mesh holds side by side; under guidance each row is
computed with and without its caption.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipeline.errors import UserError
from data_pipeline.packing import row_spec
from sora_jax.config import check_sections
from sora_jax.diffusion.denoiser import SamplingConfig, sample_rows
from sora_jax.diffusion.generation import DiffusionConfig
from sora_jax.diffusion.guidance import kind_of
from sora_jax.diffusion.sharding import network_shardings, row_shardings, spread_length
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.dit import FROZEN_TEXT, Dit, DitConfig, forward_flops
from sora_jax.models.layers import initialise
from sora_jax.objectives import diffusion
from sora_jax.objectives.data_stages import flow_config, stream_config
from sora_jax.objectives.synthetic import random_frozen
from sora_jax.parallel import CONTEXT, FSDP, RULES
from sora_jax.planning.compile import with_shardings
from sora_jax.planning.published import with_published_encoder

CAPTION = 512
"""Text tokens of a caption, or fewer where a row holds fewer."""
END_OF_TEXT = 1
"""Any token: an argument of the program."""


@dataclass(frozen=True)
class Clip:
    """What is asked for, `count` times at once."""

    width: int
    height: int
    seconds: float
    fps: float
    count: int = 1

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.seconds, self.fps, self.count) <= 0:
            raise UserError(
                f"{self.count} clips of {self.width}x{self.height}, {self.seconds} s at {self.fps} frames/s: all of "
                "these must be above 0"
            )

    def canvas(self, codec: AutoencoderConfig, patch_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """(frames, height, width) of the smallest legal canvas that holds the clip; what is too much is cropped."""
        _, *sides = (codec.spatial_compression * n for n in patch_size)
        height, width = (-(-n // m) * m for n, m in zip((self.height, self.width), sides, strict=True))
        step = codec.temporal_compression
        return 1 + -(-(max(1, round(self.seconds * self.fps)) - 1) // step) * step, height, width


@dataclass(frozen=True)
class SampleSubject:
    """What is compiled, as shapes, and what it is worth. FLOPs are of the whole batch on all devices."""

    config: DiffusionConfig
    sampling: SamplingConfig
    clip: Clip
    canvas: tuple[int, int, int]
    latent_shape: tuple[int, ...]
    params: Any
    frozen: Any
    rows: dict[str, jax.ShapeDtypeStruct]
    tokens: int
    """of one clip"""
    useful_flops: float

    @property
    def row_tokens(self) -> int:
        return self.rows["tokens"].shape[1]


def sampling_mesh(num_devices: int, num_rows: int) -> dict[str, int]:
    """All rows side by side as far as they divide the devices, and each row over what is left."""
    shards = next(n for n in range(num_rows, 0, -1) if num_rows % n == 0 and num_devices % n == 0)
    return {FSDP: shards, CONTEXT: num_devices // shards}


def sample_subject(
    config: Mapping[str, Any],
    codec: AutoencoderConfig,
    clip: Clip,
    sampling: SamplingConfig,
    vocab_size: int,
    mesh: Mapping[str, int],
) -> SampleSubject:
    """The sampling of `clip` by the generator that a training config describes."""
    check_sections(config, required=("data", "model"), optional=("flow", "preview", "optim", "train"))
    layout = stream_config(config).layout(codec.latent_channels)
    with with_published_encoder(config["model"]) as described:
        model = diffusion.model_config(described, layout.patch_values, vocab_size)
    canvas = clip.canvas(codec, layout.patch_size)
    latent_shape = codec.latent_shape(*canvas)
    tokens, caption = layout.num_tokens(latent_shape), min(CAPTION, layout.row_text)
    layout = dataclasses.replace(layout, row_tokens=spread_length(max(tokens, layout.row_tokens), mesh))
    shards = math.prod(mesh.get(axis, 1) for axis in RULES.row)
    num_rows, shapes = -(-clip.count // shards) * shards, row_spec(layout)
    rows = {name: jax.ShapeDtypeStruct((num_rows, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    return SampleSubject(
        config=DiffusionConfig(model, flow_config(config)),
        sampling=sampling,
        clip=clip,
        canvas=canvas,
        latent_shape=latent_shape,
        params=jax.eval_shape(lambda: initialise(lambda rngs: Dit(model, rngs), jax.random.key(0))),
        frozen=jax.eval_shape(lambda: random_frozen(model.text)),
        rows=rows,
        tokens=tokens,
        useful_flops=clip.count * sampling_flops(model, tokens, caption, sampling),
    )


def sampling_flops(model: DitConfig, tokens: int, caption: int, sampling: SamplingConfig) -> float:
    """Of one clip: a forward pass with the caption and, under guidance, one with the empty caption of one token, for
    each velocity that the solver asks for. A frozen text encoder runs once."""
    captions = [caption, 1] if sampling.guidance != 1.0 else [caption]
    parts = [forward_flops(model, [tokens], [length]) for length in captions]
    once = sum(part.pop(FROZEN_TEXT, 0.0) for part in parts)
    return once + sampling.num_calls * sum(sum(part.values()) for part in parts)


def sampling_arguments(subject: SampleSubject, mesh: Mesh) -> tuple[Any, Any, dict[str, jax.ShapeDtypeStruct]]:
    """(parameters, frozen networks, rows with their noise and start times) as shapes with their shardings."""
    starts = jax.ShapeDtypeStruct(subject.rows["sample_tokens"].shape, jnp.float32)
    rows = {**subject.rows, "noise": subject.rows["tokens"], "starts": starts}
    networks = [with_shardings(tree, network_shardings(tree, mesh)) for tree in (subject.params, subject.frozen)]
    return *networks, with_shardings(rows, row_shardings(rows, mesh))


def lower_sampling(subject: SampleSubject, mesh: Mesh) -> Any:
    """`sample_rows` for the mesh; `compile_lowered` compiles it."""
    with jax.set_mesh(mesh):
        params, frozen, rows = sampling_arguments(subject, mesh)
        batch, numbers = {name: rows[name] for name in subject.rows}, subject.sampling.numbers
        config, sampling = subject.config, subject.sampling
        return sample_rows.lower(
            *(config.model, config.flow, params, frozen, batch, rows["noise"], numbers, sampling.shift, END_OF_TEXT),
            rows["starts"],
            num_steps=sampling.num_steps,
            solver=sampling.solver,
            kind=kind_of(numbers),
        )


def sampling_remedies(subject: SampleSubject, mesh: Mesh) -> list[str]:
    """What makes the program smaller, the nearest change first."""
    found = []
    if subject.clip.count > 1:
        found.append(f"fewer clips at once: --rows {subject.clip.count // 2}")
    if (shards := mesh.shape[FSDP]) > 1:
        found.append(f"more of each row's tokens apart: --mesh {CONTEXT}={mesh.shape[CONTEXT] * shards}")
    found.append(f"more devices, or a shorter clip: --seconds {subject.clip.seconds / 2:g}, continued by the next")
    return found
