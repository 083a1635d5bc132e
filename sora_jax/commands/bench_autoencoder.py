"""`sora-jax bench autoencoder`: frames a second through an autoencoder, and beside the same network in PyTorch.

    sora-jax bench autoencoder --autoencoder runs/autoencoder
    sora-jax bench autoencoder --width 32 --pytorch

Clips go from 8-bit pixels to latents and back, on the host at both ends. Compilation and the first run do not count.
`--pytorch` runs diffusers' AutoencoderKLWan with the same weights and dtype in turn with ours; it needs
`pip install sora-jax[diffusers]`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sora_jax.commands.beside_pytorch import importing, leave_memory

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


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Frames a second of encoding and decoding; with PyTorch, its time over ours (1.2 on a GPU is the aim) too."""
    for name in ("size", "frames", "batch_size", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}, but must be at least 1")
    if args.pytorch:
        leave_memory()
    import jax  # after the options are known to be good

    codec = _codec(args)
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
