"""`sora-jax bench autoencoder`: frames a second through an autoencoder, and beside the same network in PyTorch.

    sora-jax bench autoencoder --autoencoder runs/autoencoder
    sora-jax bench autoencoder --width 32 --pytorch
    sora-jax bench autoencoder --width 8 --decode_seconds 5 60
    sora-jax bench autoencoder --autoencoder runs/autoencoder --size 32 --chunks 1 3 8 --lengths 1 5 9 129
    sora-jax bench autoencoder --autoencoder runs/autoencoder --stream_frames 17 1025

Clips go from 8-bit pixels to latents and back, on the host at both ends. Compilation and the first run do not count.
`--pytorch` runs diffusers' AutoencoderKLWan with the same weights and dtype in turn with ours; it needs
`pip install sora-jax[diffusers]`.

`--decode_seconds` measures memory instead: the process's peak after decoding random latents of each duration, as they
would come from a sampler, into an mp4 file. `--stream_frames` is the peak of encoding and decoding so many frames of
noise, a chunk at a time, once all programs are compiled. `--chunks`: exactness, the largest difference between
a clip coded in chunks of so many latents and in one piece, for every legal length up to 129 frames or `--lengths`.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.video_io import write_video
from sora_jax.commands.beside_pytorch import importing, leave_memory

LONGEST = 129
"""Frames of the longest clip of `--chunks`."""
Coder = Callable[[np.ndarray], np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench autoencoder`."""
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--autoencoder", type=Path, metavar="DIR", help="an export, or an autoencoder's run with one")
    network.add_argument("--width", type=int, metavar="N", help="Wan's network of this base width (96 is published)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32", help="of activations: --width")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--frames", type=int, default=17, help="frames of a clip")
    parser.add_argument("--batch_size", type=int, default=1, help="clips coded at once")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds, of which the best are compared")
    parser.add_argument("--pytorch", action="store_true", help="diffusers beside it, for Wan's network")
    parser.add_argument("--decode_seconds", nargs="+", type=float, metavar="S", help="memory of decoding into a file")
    parser.add_argument("--decode_size", nargs=2, type=int, default=(256, 144), metavar=("W", "H"), help="in pixels")
    parser.add_argument("--decode_fps", type=float, default=24.0, help="of --decode_seconds")
    parser.add_argument("--stream_frames", nargs="+", type=int, metavar="T", help="memory of coding so many frames")
    parser.add_argument("--chunks", nargs="+", type=int, metavar="N", help="chunks of so many latents beside the whole")
    parser.add_argument("--lengths", nargs="+", type=int, metavar="T", help="of --chunks: these numbers of frames")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Frames a second of encoding and decoding; with PyTorch, its time over ours (1.2 on a GPU is the aim) too."""
    for name in ("size", "frames", "batch_size", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}, but must be at least 1")
    if args.pytorch:
        leave_memory()
    import jax  # after the options are known to be good

    codec = _codec(args)
    if args.chunks:
        return {"platform": jax.default_backend(), "size": args.size} | exactness(codec, args)
    if args.stream_frames:
        return {"platform": jax.default_backend(), "size": args.size, "streamed": stream_memory(codec, args)}
    if args.decode_seconds:
        return {"platform": jax.default_backend(), "decoded": decode_memory(codec, args)}
    codec.config.latent_shape(args.frames, args.size, args.size)
    shape = (args.batch_size, args.frames, args.size, args.size, 3)
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    contenders = {"ours": codec, **({"pytorch": _in_pytorch(codec)} if args.pytorch else {})}
    latents, result = codec.encode(video), {"platform": jax.default_backend(), "shape": list(shape)}
    for verb, given in (("encode", video), ("decode", latents)):
        seconds, made = race({name: getattr(coder, verb) for name, coder in contenders.items()}, given, args.rounds)
        result[verb] = {f"{name}_frames_per_s": shape[0] * shape[1] / s for name, s in seconds.items()}
        if args.pytorch:
            difference = np.abs(made["ours"].astype(np.float32) - made["pytorch"].astype(np.float32))
            result[verb] |= {"largest_difference": float(np.max(difference)), "deviation": float(np.std(made["ours"]))}
            result[verb]["its_time_over_ours"] = seconds["pytorch"] / seconds["ours"]
    if args.pytorch:
        result["pytorch_device"] = contenders["pytorch"].device
    return result


def exactness(codec: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The largest differences of each chunk size, and for every length."""
    from sora_jax.evaluation.exact_coding import differences

    lengths = args.lengths or range(1, LONGEST + 1, codec.config.temporal_compression)
    if min(args.chunks) < 1:
        raise UserError(f"--chunks is {args.chunks}, but a chunk has at least 1 latent")
    rows = differences(codec, lengths, args.chunks, args.size)
    kinds = ("latents", "log_variances", "pixels")
    worst = {
        str(n): {kind: max(row[kind] for row in rows if row["chunk_latents"] == n) for kind in kinds}
        for n in args.chunks
    }
    return {"num_lengths": len(lengths), "largest_difference": worst, "lengths": rows}


def stream_memory(codec: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The peak for each number of frames."""
    from sora_jax.evaluation.exact_coding import stream_peaks_bytes

    peaks = stream_peaks_bytes(codec, args.stream_frames, args.size)
    return [{"frames": n, "peak_mib": peak / 2**20} for n, peak in zip(args.stream_frames, peaks, strict=True)]


def decode_memory(codec: Any, args: argparse.Namespace) -> list[dict[str, float]]:
    """For each duration the process's peak memory once it is decoded. A peak never falls: durations must rise."""
    durations_s, (width, height), found = args.decode_seconds, args.decode_size, []
    if durations_s != sorted(durations_s) or durations_s[0] <= 0:
        raise UserError(f"--decode_seconds is {durations_s}, but durations must be above 0 and rise")
    for duration_s in durations_s:
        num_latents = 1 + round(duration_s * args.decode_fps) // codec.config.temporal_compression
        num_frames = 1 + (num_latents - 1) * codec.config.temporal_compression
        shape = codec.config.latent_shape(num_frames, height, width)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            write_video(Path(folder) / "a.mp4", _decoded(codec, shape), args.decode_fps)
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pixels_mib = 3 * num_frames * width * height / 2**20
        seconds = time.perf_counter() - start
        found.append({"frames": num_frames, "pixels_mib": pixels_mib, "peak_mib": peak_kib / 2**10, "seconds": seconds})
    return found


def _decoded(codec: Any, shape: tuple[int, int, int, int]) -> Iterator[np.ndarray]:
    """Frames of random latents, which are made in pieces of whole chunks."""
    rng, step = np.random.default_rng(0), codec.config.chunk_latents
    sizes = [min(1 + step, shape[0]), *(min(step, shape[0] - at) for at in range(1 + step, shape[0], step))]
    pieces = (rng.standard_normal((1, size, *shape[1:]), np.float32) for size in sizes)
    for frames in codec.decode_stream(pieces):
        yield from frames[0]


def _codec(args: argparse.Namespace) -> Any:
    import jax

    from sora_jax.models.codec import Codec, load_codec
    from sora_jax.models.layers import initialise
    from sora_jax.models.wan import WanAutoencoder, WanConfig

    if args.autoencoder:
        return load_codec(args.autoencoder)
    if args.width < 1:
        raise UserError(f"--width is {args.width}, but must be at least 1; the published network has 96")
    config = WanConfig(base_width=args.width, dtype=args.dtype)
    params = jax.jit(lambda key: initialise(lambda rngs: WanAutoencoder(config, rngs), key))(jax.random.key(0))
    zeros = np.zeros(config.latent_channels, np.float32)
    return Codec(config, params, zeros, zeros + 1)


def _in_pytorch(codec: Any) -> Any:
    from sora_jax.models.wan import WanConfig

    if not isinstance(codec.config, WanConfig):
        raise UserError("--pytorch is for Wan's network: give --width, or the export of an imported one")
    with importing("diffusers"):
        from sora_jax.evaluation.torch_wan import TorchWan
    return TorchWan(codec)


def race(coders: dict[str, Coder], given: np.ndarray, rounds: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The best time of each in seconds, and what each made. They take turns; a first run is not timed."""
    made = {name: coder(given) for name, coder in coders.items()}
    best = dict.fromkeys(coders, float("inf"))
    for _ in range(rounds):
        for name, coder in coders.items():
            start = time.perf_counter()
            coder(given)
            best[name] = min(best[name], time.perf_counter() - start)
    return best, made
