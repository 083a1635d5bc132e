"""From prompts to pixels: requests become canvases, canvases are packed into rows, rows are sampled and decoded.

A sample's noise depends on its seed alone, so a result does not change with what else is in its row or batch.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.packing import (
    RowLayout,
    SampleInput,
    pack_row,
    pack_text,
    segment_offsets,
    stack_rows,
    unpack_tokens,
)
from data_pipeline.tokenizer import Tokenizer
from sora_jax.diffusion.denoiser import NEGATIVE, SamplingConfig, sample_rows
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.guidance import kind_of
from sora_jax.diffusion.prompting import Canvas
from sora_jax.diffusion.samplers import MAX_STEPS
from sora_jax.diffusion.sharding import row_shardings, spread_length
from sora_jax.models.codec import Codec, load_codec
from sora_jax.models.dit import DitConfig
from sora_jax.parallel import num_row_shards
from sora_jax.types import Frozen

logger = logging.getLogger(__name__)


MIN_FPS, MAX_FPS = 0.1, 240.0
MAX_TEXT_TOKENS = 512
"""A prompt may have so many tokens, or as many as a row of training held: it is never cut."""
UNLEARNED_SHARE = 0.5
"""A prompt of which the tokenizer knows less than this much as words deserves a warning."""


@dataclass(frozen=True)
class DiffusionConfig:
    """What it takes to call a trained network."""

    model: DitConfig
    flow: FlowConfig


@dataclass(frozen=True)
class Request:
    """One video (or image: one frame) to make, `width` x `height` pixels.

    Guidance leads from what is made for `negative_prompt` to what is made for `prompt`; an empty one of either is the
    caption without words that training drops captions for.
    """

    prompt: str
    width: int
    height: int
    num_frames: int
    fps: float
    seed: int = 0
    canvas: Canvas | None = None  # what of it is known, or where it starts; without one, noise alone
    negative_prompt: str = ""


@dataclass(frozen=True)
class PackedSampler:
    """A trained generator with everything between a prompt and pixels. `params` are the DiT's (usually its EMA),
    `frozen` what the task was trained with."""

    config: DiffusionConfig
    layout: RowLayout
    codec: Codec
    tokenizer: Tokenizer
    mesh: Mesh | None = None
    """Where rows, their tokens and the parameters lie, as `sharding.py` says."""

    def generate(
        self,
        params: Any,
        frozen: Frozen,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        rows_per_batch: int = 8,
        same_rows: bool = False,
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "T Y X 3"]]]:
        """Yields (number of the request, its frames): `sample`, and each result decoded as a whole. What the canvas has
        more than the request is cut off, but not of a canvas that the request brings."""
        for number, latents in self.sample(params, frozen, requests, sampling, rows_per_batch, same_rows):
            frames, request = np.concatenate(list(self.decode([latents]))), requests[number]
            yield number, frames if request.canvas else frames[:, : request.height, : request.width]

    def sample(
        self,
        params: Any,
        frozen: Frozen,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        rows_per_batch: int = 8,
        same_rows: bool = False,
    ) -> Iterator[tuple[int, Float[np.ndarray, "F H W C"]]]:
        """Yields (number of the request, its normalised latents), batch by batch of packed rows of one static shape: of
        the rows that the fullest batch needs, or with `same_rows` of `rows_per_batch`, however few there are.

        Raises UserError for an illegal request before anything is sampled.
        """
        if rows_per_batch < 1:
            raise UserError(f"rows_per_batch is {rows_per_batch}, but must be at least 1")
        sampler = self.fitting(requests)
        batches = list(sampler.batches(requests, rows_per_batch))
        for rows in batches:
            # A single compilation needs a single shape; the first batch is the fullest.
            num_rows = rows_per_batch if same_rows else len(batches[0])
            shards = 1 if self.mesh is None else num_row_shards(self.mesh)
            num_rows = -(-num_rows // shards) * shards
            yield from sampler._sample_batch(params, frozen, requests, rows, num_rows, sampling)

    def decode(self, pieces: Iterable[Float[np.ndarray, "_F H W C"]]) -> Iterator[UInt8[np.ndarray, "T Y X 3"]]:
        """The frames of one video from consecutive pieces of its normalised latents, a few at a time, so that memory
        does not grow with the video (`Codec.decode_stream`)."""
        raw = (self.codec.denormalise(piece)[None] for piece in pieces)
        return (frames[0] for frames in self.codec.decode_stream(raw))

    def _sample_batch(
        self,
        params: Any,
        frozen: Frozen,
        requests: Sequence[Request],
        rows: Sequence[Sequence[int]],
        num_rows: int,
        sampling: SamplingConfig,
    ) -> Iterator[tuple[int, Float[np.ndarray, "F H W C"]]]:
        """Of one of `batches`, filled up to `num_rows` rows with some that are thrown away."""
        padded = [*rows, *[rows[-1]] * (num_rows - len(rows))]
        batch = stack_rows([self._row(requests, numbers) for numbers in padded])
        if any(request.negative_prompt for request in requests):
            batch |= stack_rows([self._negative_text([requests[n] for n in numbers]) for numbers in padded])
        of_rows = [[requests[n] for n in numbers] for numbers in padded]
        tokens = self._sample(params, frozen, batch, of_rows, sampling)
        for row, numbers in enumerate(rows):
            offsets = segment_offsets(batch["sample_tokens"][row])
            for number, offset in zip(numbers, offsets, strict=False):
                shape = self.latent_shape(requests[number])
                yield number, unpack_tokens(tokens[row], offset, shape, self.layout.patch_size)

    def fitting(self, requests: Sequence[Request]) -> "PackedSampler":
        """This sampler with rows that hold the largest request: the network itself knows no row length.

        Warns of what training did not see. Raises UserError for an illegal size, duration or rate, and for a prompt of
        more tokens than MAX_TEXT_TOKENS and a row of training.
        """
        trained, prompts = self.layout, {p for r in requests for p in (r.prompt, r.negative_prompt)}
        tokens = max((self.num_tokens(r) for r in requests), default=0)
        text = self._check_prompts(sorted(prompts))
        if tokens > trained.row_tokens:
            logger.warning(
                "sampling %d video tokens in one piece; training rows held %d: expect less", tokens, trained.row_tokens
            )
        layout = dataclasses.replace(
            trained,
            row_tokens=spread_length(max(tokens, trained.row_tokens), {} if self.mesh is None else self.mesh.shape),
            row_text=max(text, trained.row_text),
        )
        return dataclasses.replace(self, layout=layout)

    def _check_prompts(self, prompts: Iterable[str]) -> int:
        """The number of tokens of the longest, with the end of the caption."""
        trained, longest, long = self.layout.row_text, 0, []
        limit = max(MAX_TEXT_TOKENS, trained)
        for prompt in prompts:
            ids, shown = self.tokenizer.encode(prompt), prompt if len(prompt) <= 40 else f"{prompt[:40]}…"
            longest = max(longest, len(ids) + 1)
            if longest > limit:
                raise UserError(
                    f"the prompt '{shown}' has {longest} tokens, but at most {limit} can be read: shorten it; prompts "
                    "are not cut"
                )
            long += [shown] if len(ids) + 1 > trained else []
        if long:
            logger.warning(
                "%d prompts, such as '%s', have up to %d tokens; training rows held %d in all: expect that not all of "
                "it is followed",
                *(len(long), long[0], longest, trained),
            )
        return longest

    def is_foreign(self, prompt: str) -> bool:
        """Whether most of the prompt is read as single bytes, or not at all: the tokenizer learned no such words."""
        ids = self.tokenizer.encode(prompt)
        return self.tokenizer.num_unlearned(ids) > UNLEARNED_SHARE * len(ids)

    def batches(self, requests: Iterable[Request], max_rows: int) -> Iterator[list[list[int]]]:
        """Numbers of the requests of each row of each batch: first fit in order, and a request that no row of a full
        batch has room for begins the next. So a batch depends on no later request; `fitting` made each fit.

        Raises UserError for an illegal request.
        """
        rows: list[list[int]] = []
        used: list[np.ndarray] = []
        layout = self.layout
        limit = np.array([layout.row_tokens, layout.row_text, layout.row_text, layout.row_segments])
        for number, request in enumerate(requests):
            texts = len(self.text_ids(request.prompt)), len(self.text_ids(request.negative_prompt))
            need = np.array([self.num_tokens(request), *texts, 1])
            place = next((i for i, u in enumerate(used) if np.all(u + need <= limit)), None)
            if place is not None:
                rows[place].append(number)
                used[place] = used[place] + need
                continue
            if len(rows) == max_rows:
                yield rows
                rows, used = [], []
            rows.append([number])
            used.append(need)
        if rows:
            yield rows

    def pack(self, requests: Sequence[Request]) -> list[list[int]]:
        """As `batches`, of one batch that has room for all."""
        return next(self.batches(requests, len(requests)), [])

    @property
    def size_multiples(self) -> tuple[int, int]:
        """What width and height of a canvas are multiples of."""
        s, (_, ph, pw) = self.codec.config.spatial_compression, self.layout.patch_size
        return s * pw, s * ph

    def canvas_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the canvas for a size: the next legal one; what it has more lies at the right and the
        bottom, and is cut off what was decoded."""
        across, down = self.size_multiples
        return -(-width // across) * across, -(-height // down) * down

    def latent_shape(self, request: Request) -> tuple[int, int, int]:
        """(F, H, W) of the request's canvas. Raises UserError for a size, a rate or a duration that none can have; of
        the last it names the nearest legal one."""
        config = self.codec.config
        if min(request.height, request.width) < 1:
            raise UserError(f"{request.width}x{request.height} is no size: width and height must be at least 1")
        if not MIN_FPS <= request.fps <= MAX_FPS:
            raise UserError(f"fps is {request.fps}, but must be between {MIN_FPS} and {MAX_FPS}")
        width, height = self.canvas_size(request.width, request.height)
        shape = config.latent_shape(request.num_frames, height, width)[:3]
        if request.canvas is not None and request.canvas.shape != shape:
            raise UserError(f"the canvas has latents of shape {request.canvas.shape}, but the video needs {shape}")
        return shape

    def num_tokens(self, request: Request) -> int:
        return self.layout.num_tokens(self.latent_shape(request))

    def text_ids(self, prompt: str) -> list[int]:
        return self.tokenizer.caption_ids(prompt)

    def _row(self, requests: Sequence[Request], numbers: Sequence[int]) -> dict[str, np.ndarray]:
        compression = self.codec.config.temporal_compression
        samples = [
            SampleInput(
                shape=self.latent_shape(requests[n]),
                fps=requests[n].fps,
                temporal_compression=compression,
                text_ids=self.text_ids(requests[n].prompt),
                latents=None if (canvas := requests[n].canvas) is None else canvas.latents,
                known=None if canvas is None else canvas.known,
            )
            for n in numbers
        ]
        return pack_row(samples, self.layout)

    def _negative_text(self, requests: Sequence[Request]) -> dict[str, np.ndarray]:
        """The arrays of a row's text with the negative prompts in the prompts' places (`denoiser.NEGATIVE`)."""
        texts = [self.text_ids(request.negative_prompt) for request in requests]
        return {NEGATIVE + name: array for name, array in pack_text(texts, self.layout.row_text).items()}

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
        arrays: dict[str, Any] = {**batch, "noise": noise, "starts": starts}
        shardings = None if self.mesh is None else row_shardings(arrays, self.mesh)
        arrays = jax.device_put(arrays, shardings)
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            tokens = sample_rows(
                self.config.model,
                self.config.flow,
                params,
                frozen,
                {name: arrays[name] for name in batch},
                arrays["noise"],
                sampling.numbers,
                sampling.shift,
                self.tokenizer.eos_id,
                arrays["starts"],
                sampling.num_steps,
                num_steps=MAX_STEPS,
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
