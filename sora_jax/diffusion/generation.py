"""From prompts to pixels: requests become canvases, canvases are packed into rows, rows are sampled and decoded.

A sample's noise depends on its seed alone, so a result does not change with what else is in its row or batch.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.packing import RowLayout, SampleInput, pack_row, segment_offsets, stack_rows, unpack_tokens
from data_pipeline.tokenizer import Tokenizer
from sora_jax.diffusion.denoiser import SamplingConfig, sample_rows
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.guidance import kind_of
from sora_jax.diffusion.prompting import Canvas
from sora_jax.models.codec import Codec, load_codec
from sora_jax.models.dit import DitConfig
from sora_jax.types import Frozen

logger = logging.getLogger(__name__)


MIN_FPS, MAX_FPS = 0.1, 240.0


@dataclass(frozen=True)
class DiffusionConfig:
    """What it takes to call a trained network."""

    model: DitConfig
    flow: FlowConfig


@dataclass(frozen=True)
class Request:
    """One video (or image: one frame) to make, `width` x `height` pixels."""

    prompt: str
    width: int
    height: int
    num_frames: int
    fps: float
    seed: int = 0
    canvas: Canvas | None = None  # what of it is known, or where it starts; without one, noise alone


@dataclass(frozen=True)
class PackedSampler:
    """A trained generator with everything between a prompt and pixels. `params` are the DiT's (usually its EMA),
    `frozen` what the task was trained with."""

    config: DiffusionConfig
    layout: RowLayout
    codec: Codec
    tokenizer: Tokenizer

    def generate(
        self,
        params: Any,
        frozen: Frozen,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        rows_per_batch: int = 8,
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "T Y X 3"]]]:
        """Yields (number of the request, its frames): `sample`, and each result decoded as a whole."""
        for number, latents in self.sample(params, frozen, requests, sampling, rows_per_batch):
            yield number, np.concatenate(list(self.decode([latents])))

    def sample(
        self,
        params: Any,
        frozen: Frozen,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        rows_per_batch: int = 8,
    ) -> Iterator[tuple[int, Float[np.ndarray, "F H W C"]]]:
        """Yields (number of the request, its normalised latents), batch by batch of packed rows of one static shape.

        Raises UserError for an illegal size before anything is sampled.
        """
        if rows_per_batch < 1:
            raise UserError(f"rows_per_batch is {rows_per_batch}, but must be at least 1")
        yield from self.fitting(requests)._rows(params, frozen, requests, sampling, rows_per_batch)

    def decode(self, pieces: Iterable[Float[np.ndarray, "_F H W C"]]) -> Iterator[UInt8[np.ndarray, "T Y X 3"]]:
        """The frames of one video from consecutive pieces of its normalised latents, a few at a time, so that memory
        does not grow with the video (`Codec.decode_stream`)."""
        raw = (self.codec.denormalise(piece)[None] for piece in pieces)
        return (frames[0] for frames in self.codec.decode_stream(raw))

    def _rows(
        self, params: Any, frozen: Frozen, requests: Sequence[Request], sampling: SamplingConfig, rows_per_batch: int
    ) -> Iterator[tuple[int, Float[np.ndarray, "F H W C"]]]:
        rows = self.pack(requests)
        # A single compilation needs a single shape: the last batch is filled up with a row that is thrown away.
        size = min(rows_per_batch, len(rows))
        for start in range(0, len(rows), size):
            members = rows[start : start + size]
            padded = [*members, *[members[-1]] * (size - len(members))]
            batch = stack_rows([self._row(requests, numbers) for numbers in padded])
            of_rows = [[requests[n] for n in numbers] for numbers in padded]
            tokens = self._sample(params, frozen, batch, of_rows, sampling)
            for row, numbers in enumerate(members):
                offsets = segment_offsets(batch["sample_tokens"][row])
                for number, offset in zip(numbers, offsets, strict=False):
                    shape = self.latent_shape(requests[number])
                    yield number, unpack_tokens(tokens[row], offset, shape, self.layout.patch_size)

    def fitting(self, requests: Sequence[Request]) -> "PackedSampler":
        """This sampler with rows that hold the largest request: the network itself knows no row length.

        Raises UserError for an illegal size, duration or rate.
        """
        tokens = max((self.num_tokens(r) for r in requests), default=0)
        text = max((len(self.text_ids(r)) for r in requests), default=0)
        trained = self.layout
        if tokens > trained.row_tokens or text > trained.row_text:
            logger.warning(
                "sampling %d video and %d text tokens in one piece; training rows held %d and %d: expect less",
                *(tokens, text, trained.row_tokens, trained.row_text),
            )
        layout = dataclasses.replace(
            trained, row_tokens=max(tokens, trained.row_tokens), row_text=max(text, trained.row_text)
        )
        return dataclasses.replace(self, layout=layout)

    def pack(self, requests: Sequence[Request]) -> list[list[int]]:
        """Numbers of the requests of each row, first fit in order; `fitting` made each fit. Raises UserError for an
        illegal request."""
        rows: list[list[int]] = []
        used: list[np.ndarray] = []
        limit = np.array([self.layout.row_tokens, self.layout.row_text, self.layout.row_segments])
        for number, request in enumerate(requests):
            need = np.array([self.num_tokens(request), len(self.text_ids(request)), 1])
            place = next((i for i, u in enumerate(used) if np.all(u + need <= limit)), None)
            if place is None:
                rows.append([number])
                used.append(need)
            else:
                rows[place].append(number)
                used[place] = used[place] + need
        return rows

    def latent_shape(self, request: Request) -> tuple[int, int, int]:
        """(F, H, W) of the request's canvas. Raises UserError that names the nearest legal size or duration."""
        config, (_, ph, pw) = self.codec.config, self.layout.patch_size
        multiples = config.spatial_compression * ph, config.spatial_compression * pw
        if min(request.height, request.width) < 1 or request.height % multiples[0] or request.width % multiples[1]:
            near = [m * max(1, round(n / m)) for n, m in zip((request.height, request.width), multiples, strict=True)]
            raise UserError(
                f"{request.width}x{request.height} is no legal size for this model: the width must divide by "
                f"{multiples[1]} and the height by {multiples[0]}; the nearest legal size is {near[1]}x{near[0]}"
            )
        if not MIN_FPS <= request.fps <= MAX_FPS:
            raise UserError(f"fps is {request.fps}, but must be between {MIN_FPS} and {MAX_FPS}")
        shape = config.latent_shape(request.num_frames, request.height, request.width)[:3]
        if request.canvas is not None and request.canvas.shape != shape:
            raise UserError(f"the canvas has latents of shape {request.canvas.shape}, but the video needs {shape}")
        return shape

    def num_tokens(self, request: Request) -> int:
        return self.layout.num_tokens(self.latent_shape(request))

    def text_ids(self, request: Request) -> list[int]:
        return [*self.tokenizer.encode(request.prompt), self.tokenizer.eos_id]

    def _row(self, requests: Sequence[Request], numbers: Sequence[int]) -> dict[str, np.ndarray]:
        compression = self.codec.config.temporal_compression
        samples = [
            SampleInput(
                shape=self.latent_shape(requests[n]),
                fps=requests[n].fps,
                temporal_compression=compression,
                text_ids=self.text_ids(requests[n]),
                latents=None if (canvas := requests[n].canvas) is None else canvas.latents,
                known=None if canvas is None else canvas.known,
            )
            for n in numbers
        ]
        return pack_row(samples, self.layout)

    def _sample(
        self,
        params: Any,
        frozen: Frozen,
        batch: dict[str, np.ndarray],
        members: list[list[Request]],
        sampling: SamplingConfig,
    ) -> Float[np.ndarray, "B L P"]:
        noise = np.zeros(batch["tokens"].shape, np.float32)
        starts = np.ones(batch["sample_tokens"].shape, np.float32)
        for row, requests in enumerate(members):
            values = [_noise(r.seed, self.num_tokens(r), self.layout.patch_values) for r in requests]
            joined = np.concatenate(values)
            noise[row, : len(joined)] = joined
            starts[row, : len(requests)] = [1.0 if r.canvas is None else r.canvas.strength for r in requests]
        tokens = sample_rows(
            self.config.model,
            self.config.flow,
            params,
            frozen,
            {k: jnp.asarray(v) for k, v in batch.items()},
            jnp.asarray(noise),
            sampling.numbers,
            sampling.shift,
            self.tokenizer.eos_id,
            jnp.asarray(starts),
            num_steps=sampling.num_steps,
            solver=sampling.solver,
            kind=kind_of(sampling.numbers),
        )
        return np.asarray(tokens)


def _noise(seed: int, num_tokens: int, patch_values: int) -> Float[np.ndarray, "n P"]:
    return np.asarray(jax.random.normal(jax.random.key(seed), (num_tokens, patch_values)))


@dataclass(frozen=True)
class PreviewConfig:
    """What a run draws every `preview_every` steps; the seed of sample i is i, at every step."""

    prompts: tuple[str, ...] = ()
    width: int = 32
    height: int = 32
    num_frames: int = 9
    fps: float = 8.0
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(num_steps=20, guidance=3.0))

    def requests(self) -> list[Request]:
        """One request for each prompt."""
        return [
            Request(p, self.width, self.height, self.num_frames, self.fps, seed) for seed, p in enumerate(self.prompts)
        ]


def make_preview(generator: PackedSampler, cfg: PreviewConfig) -> Callable[[Any, Any, Path, int], list[Path]] | None:
    """A preview that samples the configured prompts with the EMA parameters: one line of frames for each."""
    if not cfg.prompts:
        return None

    def preview(params: Any, frozen: Any, directory: Path, step: int) -> list[Path]:
        results = sorted(generator.generate(params["dit"], frozen, cfg.requests(), cfg.sampling), key=lambda r: r[0])
        lines = [np.concatenate(list(frames), axis=1) for _, frames in results]
        path = directory / f"samples_{step:07d}.png"
        Image.fromarray(np.concatenate(lines, axis=0)).save(path)
        return [path]

    return preview


def load_generator(config: DiffusionConfig, layout: RowLayout, latents: Path) -> PackedSampler:
    """A generator whose autoencoder and tokenizer lie beside the latents that it was trained on."""
    return PackedSampler(
        config, layout, load_codec(latents / "autoencoder"), Tokenizer.load(latents / "tokenizer.model")
    )
