"""`sora-jax encode`: clip shards → latent shards, through a trained autoencoder.

    sora-jax encode --autoencoder runs/autoencoder --data CLIPS --out LATENTS [--mesh data=4,context=2]

On several devices each codes some of a batch's clips; with `context`, some rows of pixels of each frame. With
`--text_encoder DIR` the captions are encoded too (docs/text_encoders.md); for latents that are there already,
`--text_encoder DIR --out LATENTS` is enough.
"""

import argparse
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress

from data_pipeline.errors import UserError
from data_pipeline.latents import Encoding, WindowConfig, encode_latents, estimate_statistics
from data_pipeline.shards import ShardReader
from sora_jax.commands.encode_text import add_text_arguments, encode_text, text_source
from sora_jax.models.codec import Codec, load_codec
from sora_jax.parallel import DATA, make_mesh, num_row_shards, parse_mesh
from sora_jax.training.trained_codec import is_run, newest_codec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--autoencoder", type=Path, help="an autoencoder's run or its export")
    parser.add_argument(
        "--data",
        type=Path,
        help="clip shards, from `sora-jax data build`; without this and --autoencoder, --text_encoder encodes the "
        "captions of the latents in --out alone",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the latent shards")
    parser.add_argument("--max_frames", type=int, default=65, help="longest window in pixel frames")
    parser.add_argument("--short_side", type=int, default=0, help="scale down to this short side; 0 keeps the size")
    parser.add_argument(
        "--fps", type=_rates, default=0.0, help="resample to this rate at most; 0 keeps it; of 8,16 each clip draws one"
    )
    parser.add_argument("--latent_multiple", type=int, default=1, help="crop sides to multiples of this many latents")
    parser.add_argument(
        "--latent_scale",
        choices=("channel", "all"),
        default="channel",
        help="what latents are divided by: the deviations of the autoencoder's export (made now, it has one for each "
        "channel), or one for all, so that a channel that hardly varies stays small (for codes that are not whitened)",
    )
    parser.add_argument("--tile", type=int, default=0, help="code frames in tiles of so many pixels; 0: whole")
    parser.add_argument("--mesh", help="axes and sizes, as in training (default: data over all accelerators here)")
    parser.add_argument("--batch_size", type=int, default=16, help="windows of one shape that are encoded at once")
    add_text_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.autoencoder is None or args.data is None:
        return _encode_text_alone(args)
    windows = WindowConfig(args.max_frames, args.short_side, args.fps, args.latent_multiple, args.batch_size)
    reader = ShardReader(args.data, kind="clip")
    text, mesh = text_source(args, reader), _mesh(args.mesh, args.batch_size)
    codec = find_or_export(args.autoencoder, reader, windows, mesh).in_tiles(args.tile)
    codec = codec.with_one_scale() if args.latent_scale == "all" else codec
    codec = codec if mesh is None else codec.on_mesh(mesh)
    encoding = Encoding(
        encode=codec.encode,
        temporal_compression=codec.config.temporal_compression,
        spatial_compression=codec.config.spatial_compression,
        fingerprint=codec.fingerprint,
        statistics=(tuple(map(float, codec.latent_mean)), tuple(map(float, codec.latent_std))),
    )
    if not (args.out / "manifest.json").exists():  # before the latents: finished ones are never without their codec
        codec.save(args.out / "autoencoder")
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("encoding clips", total=reader.num_records())
        counts = encode_latents(args.data, args.out, encoding, windows, lambda: progress.advance(bar))
    cached = {} if text is None else encode_text(args.out, text, args.max_caption_tokens, mesh)
    return {**counts, "autoencoder_fingerprint": codec.fingerprint, **cached}


def _encode_text_alone(args: argparse.Namespace) -> dict[str, Any]:
    """The captions of latents that are there already."""
    if args.text_encoder is None or args.autoencoder is not None or args.data is not None:
        raise UserError(
            "encode needs --autoencoder and --data to encode clips, or neither of them, but --text_encoder, for the "
            "captions of the latents in --out"
        )
    text = text_source(args, ShardReader(args.out, kind="latent"))
    assert text is not None, "it is asked for"
    mesh = _mesh(args.mesh, args.batch_size)
    return {"out": str(args.out), **encode_text(args.out, text, args.max_caption_tokens, mesh)}


def _rates(text: str) -> float | tuple[float, ...]:
    """One rate as a number (the form that older latents were described by), several as a tuple."""
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a rate, or several with commas, such as 8,16") from None
    return rates if len(rates) > 1 else rates[0]


def _mesh(text: str | None, batch_size: int) -> Mesh | None:
    """The mesh of `--mesh`, or of as many accelerators of this process as divide a batch; None for a CPU, whose devices
    share its cores.

    Raises UserError for a mesh that does not fit the devices or the batch.
    """
    devices = jax.local_devices()
    if text is None:
        count = math.gcd(batch_size, len(devices))
        return None if devices[0].platform == "cpu" or count == 1 else make_mesh({DATA: count}, devices[:count])
    mesh = make_mesh(parse_mesh(text), devices, "--mesh")
    shards = num_row_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"--batch_size {batch_size} does not divide over the {shards} devices that --mesh {text} gives to clips; "
            f"choose a multiple of {shards}"
        )
    return mesh


def find_or_export(autoencoder: Path, reader: ShardReader, windows: WindowConfig, mesh: Mesh | None = None) -> Codec:
    """The export of a run, made now from its newest checkpoint (EMA) unless there is one of the very same weights.

    The latents' statistics come from this data set, coded on `mesh` if there is one; the export keeps them for every
    later one.
    """
    if not is_run(autoencoder):
        return load_codec(autoencoder)
    codec, _ = newest_codec(autoencoder)
    exported = _export_of(autoencoder)
    neutral = dict(latent_mean=codec.latent_mean, latent_std=codec.latent_std)
    if exported is not None and dataclasses.replace(exported, **neutral).fingerprint == codec.fingerprint:
        return exported
    compression = codec.config.temporal_compression, codec.config.spatial_compression
    encoder = codec if mesh is None else codec.on_mesh(mesh)
    mean, std = estimate_statistics(reader, encoder.encode, windows, compression)
    codec = Codec(codec.config, codec.params, np.asarray(mean, np.float32), np.asarray(std, np.float32))
    shutil.rmtree(autoencoder / "export", ignore_errors=True)
    codec.save(autoencoder / "export")
    return codec


def _export_of(run: Path) -> Codec | None:
    """The run's export, or None where there is none that can be read: it can be made again."""
    try:
        return load_codec(run / "export")
    except UserError:
        return None
