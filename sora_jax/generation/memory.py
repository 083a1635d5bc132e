"""Whether what is asked for fits into memory, said before anything is sampled: numbers, and what to do about them.

Estimates, not measurements: sampling holds activations of one block for each token of a batch (attention runs in
blocks, so that nothing grows with the square of a canvas), decoding those of the finest stage for each pixel of a chunk
of frames. `tests/sora_jax/generation/test_memory.py` holds them against what the compiler reserves.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import psutil

from data_pipeline.errors import UserError
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.generation import PackedSampler, Request
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.codec import Codec
from sora_jax.models.wan import WanConfig

TOKEN_BYTES = 90
"""Bytes for each token and unit of the network's width while a block runs: the residual stream, modulation, queries,
keys, values and output in float32, or the MLP's hidden layer."""
PIXEL_COPIES = 10
"""Activations of the decoder's finest stage that are alive at once."""
DECODE_BUDGET_BYTES = 4 * 2**30
"""Frames whose chunk needs more than this are decoded in tiles; the same on every machine, so that results are."""
TILES = (1024, 768, 512, 256, 128)

logger = logging.getLogger(__name__)


def sampling_bytes(sampler: PackedSampler, num_rows: int, sampling: SamplingConfig) -> int:
    """On one device at the peak of sampling `num_rows` rows at once; a mesh spreads rows, tokens or heads evenly."""
    branches = 2 if sampling.guidance != 1.0 else 1
    tokens = num_rows * branches * sampler.layout.row_tokens
    devices = 1 if sampler.mesh is None else sampler.mesh.size
    return tokens * (TOKEN_BYTES * sampler.config.model.width + 16 * sampler.layout.patch_values) // devices


def decoding_bytes(codec: Codec, num_frames: int, height: int, width: int) -> int:
    """At the peak of decoding a chunk of whole frames, or of one tile of them."""
    if codec.tiling is not None:
        height, width = min(height, codec.tiling.tile), min(width, codec.tiling.tile)
    chunk = 1 + codec.config.chunk_latents * codec.config.temporal_compression
    return round(min(num_frames, chunk) * height * width * (PIXEL_COPIES * _finest_bytes(codec.config) + 24))


def with_tiles(codec: Codec, requests: Sequence[Request]) -> Codec:
    """The codec with the largest tiles whose decoding stays within DECODE_BUDGET_BYTES; without, if whole frames do."""
    largest = max(requests, key=lambda r: min(r.num_frames, 17) * r.height * r.width)
    shape = largest.num_frames, largest.height, largest.width
    if decoding_bytes(codec, *shape) <= DECODE_BUDGET_BYTES:
        return codec
    fitting = [t for t in TILES if t % (4 * codec.config.spatial_compression) == 0]
    tiled = [codec.in_tiles(t) for t in fitting]
    chosen = next((c for c in tiled if decoding_bytes(c, *shape) <= DECODE_BUDGET_BYTES), tiled[-1] if tiled else codec)
    if chosen.tiling is not None:
        logger.info(
            "frames of %dx%d are decoded in tiles of %d pixels", largest.width, largest.height, chosen.tiling.tile
        )
    return chosen


def check_fits(
    sampler: PackedSampler,
    requests: Sequence[Request],
    num_rows: int,
    sampling: SamplingConfig,
    free: int | None = None,
) -> None:
    """Raises UserError where sampling or decoding needs more than the `free` bytes (default: of the first device)."""
    free = free_bytes(jax.local_devices()[0]) if free is None else free
    largest = max(requests, key=sampler.num_tokens)
    tokens, what = sampler.num_tokens(largest), f"{largest.num_frames} frames of {largest.width}x{largest.height}"
    need = sampling_bytes(sampler, num_rows, sampling)
    if need > free:
        most = math.floor(sampler.layout.row_tokens * free / (need / num_rows))
        remedy = "--rows_per_batch 1, " if num_rows > 1 else ""
        scale = math.sqrt(min(1.0, most / tokens))
        raise UserError(
            f"{what} are {tokens} tokens, and sampling {num_rows} rows of {sampler.layout.row_tokens} needs about "
            f"{_gib(need)} of memory, but {_gib(free)} are free, enough for {most} tokens: choose {remedy}a smaller "
            f"--size (such as {_legal(sampler, largest, scale)}), fewer --frames, or --mesh to use more devices"
        )
    decoding = decoding_bytes(sampler.codec, largest.num_frames, largest.height, largest.width)
    if decoding > free:
        raise UserError(
            f"decoding {what} needs about {_gib(decoding)} of memory, but {_gib(free)} are free: choose a --tile of "
            f"{4 * sampler.codec.config.spatial_compression} pixels or a multiple, or a smaller --size"
        )


def free_bytes(device: Any) -> int:
    """What a device has left; on a CPU, the machine (or the container, where it has a limit)."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return int(psutil.virtual_memory().available)


def _finest_bytes(config: AutoencoderConfig | WanConfig) -> float:
    """Bytes of one activation for each pixel of the video, where they are most."""
    itemsize = 2 if config.dtype == "bfloat16" else 4
    if isinstance(config, WanConfig):
        return itemsize * config.base_width * config.widths[0]
    found, space, time = [], config.patch_size, 1
    for stage in config.stages:
        found.append(stage.width / ((space * stage.space) ** 2 * time * stage.time))
        found.append(stage.width / (space**2 * time))  # on its way up, before the next stage takes it
        space, time = space * stage.space, time * stage.time
    return itemsize * max(found)


def _legal(sampler: PackedSampler, request: Request, scale: float) -> str:
    multiples = sampler.size_multiples
    sides = [
        max(m, m * math.floor(n * scale / m)) for n, m in zip((request.width, request.height), multiples, strict=True)
    ]
    return f"{sides[0]}x{sides[1]}"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
