"""`sora-jax bench loader`: how fast a data set comes through the stream: tokens a second of packed latent rows, or
frames a second of clip crops."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from data_pipeline.clip_stream import ClipSource, ClipStreamConfig
from data_pipeline.errors import UserError
from data_pipeline.prefetch import StepSource, make_stream
from data_pipeline.shards import Manifest
from data_pipeline.stream import LatentSource, StreamConfig
from sora_jax.commands.train import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench loader`."""
    parser.add_argument("--data", type=Path, required=True, help="latent or clip shards")
    parser.add_argument("--config", metavar="FILE.py", help="a run's rows or crops, instead of the options below")
    parser.add_argument("--num_workers", type=int, default=1, help="worker processes (0: threads of this one)")
    parser.add_argument("--steps", type=int, default=50, help="timed steps, after one that starts the workers")
    parser.add_argument("--batch_rows", type=int, default=8, help="rows or clips of a step")
    parser.add_argument("--row_tokens", type=int, default=16384)
    parser.add_argument("--row_text", type=int, default=0, help="text tokens of a row (0: a sixteenth of row_tokens)")
    parser.add_argument("--row_segments", type=int, default=0, help="samples of a row (0: one for 256 tokens)")
    parser.add_argument("--patch", type=int, default=2, help="rows and columns of a patch, in latents")
    parser.add_argument("--durations", default="full", help="full or drawn")
    parser.add_argument("--crop", default="17x128x128", help="clips: FRAMESxHEIGHTxWIDTH")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Rates over the timed steps."""
    kind = Manifest.load(args.data).kind
    if args.config is None:
        return _bench_latents(args, _rows(args)) if kind == "latent" else _bench_clips(args, _crops(args))
    config = load_config(args.config, args.overrides).to_dict()
    task = config["train"]["task"]
    if (kind == "latent") != (task == "diffusion"):
        raise UserError(f"{args.data} holds {kind} records, but {args.config} trains the {task}")
    from sora_jax.objectives import autoencoder, diffusion  # jax takes a second, and only a config needs it

    if kind == "latent":
        return _bench_latents(args, diffusion.stream_config(config))
    return _bench_clips(args, autoencoder.stream_config(config))


def _rows(args: argparse.Namespace) -> StreamConfig:
    return StreamConfig(
        row_tokens=args.row_tokens,
        row_text=args.row_text or max(64, args.row_tokens // 16),
        row_segments=args.row_segments or max(4, args.row_tokens // 256),
        batch_rows=args.batch_rows,
        patch_size=(1, args.patch, args.patch),
        durations=args.durations,
    )


def _crops(args: argparse.Namespace) -> ClipStreamConfig:
    crop = tuple(int(part) for part in args.crop.split("x") if part.isdigit())
    if len(crop) != 3:
        raise UserError(f"--crop {args.crop!r} must be FRAMESxHEIGHTxWIDTH, such as 17x128x128")
    return ClipStreamConfig(crops=(crop,), batch_size=args.batch_rows)


def _bench_latents(args: argparse.Namespace, cfg: StreamConfig) -> dict[str, Any]:
    seconds, batches = _time(LatentSource(args.data, cfg), args)
    tokens = sum(int(batch["sample_tokens"].sum()) for batch in batches)
    text = sum(int((batch["text_segment_ids"] > 0).sum()) for batch in batches)
    return {
        "tokens_per_s": tokens / seconds,
        "text_tokens_per_s": text / seconds,
        "samples_per_s": sum(int((batch["sample_ids"] >= 0).sum()) for batch in batches) / seconds,
        "padding": 1 - tokens / (args.steps * cfg.batch_rows * cfg.row_tokens),
        "num_unreadable": sum(int(batch["num_unreadable"]) for batch in batches),
        "ms_per_step": 1e3 * seconds / args.steps,
        "num_workers": args.num_workers,
    }


def _bench_clips(args: argparse.Namespace, cfg: ClipStreamConfig) -> dict[str, Any]:
    source = ClipSource(args.data, cfg)
    seconds, batches = _time(source, args)
    frames = cfg.batch_size * sum(source.shape(step)[0] for step in range(1, args.steps + 1))
    return {
        "frames_per_s": frames / seconds,
        "clips_per_s": args.steps * cfg.batch_size / seconds,
        "num_unreadable": sum(int(batch["num_unreadable"]) for batch in batches),
        "ms_per_step": 1e3 * seconds / args.steps,
        "num_workers": args.num_workers,
    }


def _time(source: StepSource, args: argparse.Namespace) -> tuple[float, list[dict[str, np.ndarray]]]:
    """(seconds, what remains of the batches: everything but the large arrays)."""
    kept = []
    with make_stream(source, 0, args.steps + 1, args.num_workers) as stream:
        next(stream)
        start = time.monotonic()
        for batch in track(stream, "loading", total=args.steps, console=Console(stderr=True), transient=True):
            kept.append({name: batch[name] for name in batch if name not in ("tokens", "positions", "video")})
        seconds = time.monotonic() - start
    return seconds, kept
