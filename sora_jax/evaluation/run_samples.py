"""Samples of a run that answer the real side: the prompt of each real clip, drawn by the bulk sampler.

Sample i has the first caption of real clip i and the seed `seed` + i. The folder's manifest says of each the
checkpoint, whether it is the EMA, autoencoder, prompt, seed, solver, steps, guidance, size and rate: `open_media`
hashes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from sora_jax.evaluation.inputs import clip_numbers
from sora_jax.generation.api import Generator
from sora_jax.generation.bulk import Bulk, sample_in_bulk
from sora_jax.generation.options import SampleOptions, changed


@dataclass(frozen=True)
class Draw:
    """What is drawn for which real clips: as many as `most` of a split, evenly spread."""

    real: Path
    split: str
    most: int
    options: SampleOptions
    least_frames: int = 1
    rows_per_batch: int = 8


def captions_of(real: Path, split: str, most: int) -> tuple[str, ...]:
    """The first caption of up to `most` clips. Raises UserError for what is no clip shards, or has no captions."""
    reader = ShardReader(real, "clip")
    numbers = clip_numbers(reader, split)
    chosen = [int(numbers[i * len(numbers) // min(most, len(numbers))]) for i in range(min(most, len(numbers)))]
    found = [(reader.read(number).captions or [None])[0] for number in chosen]
    if None in found:
        raise UserError(f"{found.count(None)} of {len(found)} clips of {real} have no caption to sample from")
    return tuple(caption.text for caption in found if caption is not None)


def draw_samples(
    generator: Generator, draw: Draw, out: Path, told: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """The folder `out` with the samples; those that are there already are kept. Raises UserError as the sampler."""
    prompts = captions_of(draw.real, draw.split, draw.most)
    options = draw.options.resolved(generator.run.preview)
    options = changed(options, frames=max(options.frames or 1, draw.least_frames))
    job = Bulk(prompts, len(prompts), out, options, rows_per_batch=draw.rows_per_batch)
    manifest, _ = sample_in_bulk(generator, job, told=told)
    manifest.merge(len(prompts))
    return out
