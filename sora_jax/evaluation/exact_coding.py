"""How exactly chunks equal the whole, and what memory a stream through an autoencoder takes.

`differences`: the largest absolute difference between a clip coded in chunks and in one piece, of the posterior's means
and log-variances, and of the pixels in [-1, 1] before they are rounded. `stream_peaks_bytes`: the most memory that
this process holds while a clip goes through encoder and decoder with no more than a chunk of it anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from data_pipeline.errors import UserError
from sora_jax.models.codec import Codec, apply, chunks, to_float

PEAK_RESET = Path("/proc/self/clear_refs")

Coder = Callable[[Any, jax.Array, list[jax.Array]], tuple[jax.Array, list[jax.Array]]]


def differences(codec: Codec, lengths: Sequence[int], chunk_sizes: Sequence[int], size: int) -> list[dict[str, Any]]:
    """For each number of frames, the differences of each chunk size (in latents), on noise of `size` pixels a side.

    The whole is the longest clip in one piece: nothing looks ahead, so that its beginning is the whole of a shorter.
    Raises UserError for an illegal length or size.
    """
    encode, decode = _coders(codec)
    c, rows = codec.config.temporal_compression, []
    for length in lengths:
        codec.config.latent_shape(length, size, size)
    video = to_float(next(noise(max(lengths), size, max(lengths))))
    moments, _ = encode(codec.params, video, [])
    latents = jnp.split(moments, 2, axis=-1)[0]
    pixels, _ = decode(codec.params, latents, [])
    for chunk in chunk_sizes:
        for length in lengths:
            num_latents = 1 + (length - 1) // c
            coded = _in_chunks(encode, codec.params, video[:, :length], chunk * c)
            decoded = _in_chunks(decode, codec.params, latents[:, :num_latents], chunk)
            means, log_variances = map(_largest, jnp.split(coded, 2, axis=-1), jnp.split(moments, 2, axis=-1))
            found = {"latents": means, "log_variances": log_variances, "pixels": _largest(decoded, pixels)}
            rows.append({"frames": length, "chunk_latents": chunk, **found})
    return rows


def noise(num_frames: int, size: int, step: int, seed: int = 0) -> Iterator[UInt8[np.ndarray, "1 _T Y X 3"]]:
    """Random pixels, `step` frames at a time after the first `1 + step`."""
    rng = np.random.default_rng(seed)
    for start, end in chunks(num_frames, step):
        yield rng.integers(0, 256, (1, end - start, size, size, 3), np.uint8)


def stream_peaks_bytes(codec: Codec, lengths: Sequence[int], size: int) -> list[int]:
    """Streams clips of noise of so many frames through encoder and decoder; the peak of the process during each.

    A short clip goes first, so that what compiling the programs of the first and of every later chunk takes is over.
    Raises UserError as encoding does, and where the system cannot begin a peak anew.
    """
    for length in lengths:
        codec.config.latent_shape(length, size, size)
    if not PEAK_RESET.exists():
        raise UserError(f"this system has no {PEAK_RESET}, which begins a new peak of memory: measure on Linux")
    step, peaks = codec.config.chunk_latents * codec.config.temporal_compression, []
    _stream(codec, 1 + 3 * step, size, step)
    for length in lengths:
        PEAK_RESET.write_text("5")  # proc(5): the peak becomes what is resident now
        _stream(codec, length, size, step)
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        peaks.append(int(line.split()[1]) * 1024)
    return peaks


def _stream(codec: Codec, num_frames: int, size: int, step: int) -> None:
    latents = (posterior.mean for posterior in codec.encode_stream(noise(num_frames, size, step)))
    made = sum(frames.shape[1] for frames in codec.decode_stream(latents))
    assert made == num_frames, f"{made} frames of {num_frames} came back"


def _coders(codec: Codec) -> tuple[Coder, Coder]:
    """Moments and float pixels, compiled for each shape of a chunk."""

    @jax.jit
    def encode(params: Any, video: jax.Array, cache: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        posterior, cache = apply(codec.config, params).encode(video, cache)
        return jnp.concatenate(posterior, axis=-1), cache

    @jax.jit
    def decode(params: Any, latents: jax.Array, cache: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        return apply(codec.config, params).decode(latents, cache)

    return encode, decode


def _in_chunks(coder: Coder, params: Any, x: Float[Array, "B T Y X D"], step: int) -> jax.Array:
    parts, cache = [], []
    for start, end in chunks(x.shape[1], step):
        part, cache = coder(params, x[:, start:end], cache)
        parts.append(part)
    return jnp.concatenate(parts, axis=1)


def _largest(part: jax.Array, whole: jax.Array) -> float:
    """Between a part and the beginning of the whole."""
    return float(jnp.max(jnp.abs(part - whole[:, : part.shape[1]])))
