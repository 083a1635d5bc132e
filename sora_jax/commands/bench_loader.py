"""`sora-jax bench loader`: how fast a data set comes through the stream: tokens a second of packed latent rows, or
frames a second of clip crops."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track

from data_pipeline.clip_stream import ClipSource, ClipStreamConfig
from data_pipeline.errors import UserError
from data_pipeline.prefetch import Batch, StepSource, make_stream
from data_pipeline.shards import Manifest
from data_pipeline.stages import StagedSource
from data_pipeline.stream import LatentSource, StreamConfig
from sora_jax.commands.shared import check_task, set_data
from sora_jax.commands.train import load_config

COUNTS = ("tokens", "text", "samples", "unreadable")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench loader`."""
    parser.add_argument("--data", type=Path, help="latent or clip shards, in place of config.data.path")
    parser.add_argument("--config", metavar="FILE.py", help="a run's rows or crops, instead of the options below")
    parser.add_argument("--num_workers", type=int, default=1, help="worker processes (0: threads of this one)")
    parser.add_argument("--steps", type=int, default=50, help="timed steps, after one that starts the workers")
    parser.add_argument("--start_step", type=int, default=0, help="the first one, such as one of a later stage")
    parser.add_argument("--batch_rows", type=int, default=8, help="rows or clips of a step")
    parser.add_argument("--row_tokens", type=int, default=16384)
    parser.add_argument("--row_text", type=int, default=0, help="text tokens of a row (0: a sixteenth of row_tokens)")
    parser.add_argument("--row_segments", type=int, default=0, help="samples of a row (0: one for 256 tokens)")
    parser.add_argument("--patch", type=int, default=2, help="rows and columns of a patch, in latents")
    parser.add_argument("--durations", default="full", help="full or drawn")
    parser.add_argument("--crop", default="17x128x128", help="clips: FRAMESxHEIGHTxWIDTH")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Rates over the timed steps."""
    if args.config is not None:
        return _bench_config(args, load_config(args.config, args.overrides).to_dict())
    if args.data is None:
        raise UserError("nothing says what to load: give --data DIR, or --config FILE.py with data of its own")
    if Manifest.load(args.data).kind == "latent":
        rows = _rows(args)
        return _bench_latents(args, LatentSource(args.data, rows), rows)
    return _bench_clips(args, args.data, _crops(args))


def _bench_config(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    task = check_task(config, "autoencoder", "diffusion")
    if args.data:
        set_data(config, args.data)
    path = config["data"]["path"]
    kind = Manifest.load(path).kind
    if (kind == "latent") != (task == "diffusion"):
        raise UserError(f"{path} holds {kind} records, but {args.config} trains the {task}")
    from sora_jax.objectives import autoencoder, data_stages  # jax takes a second, and only a config needs it

    if kind == "latent":
        source = StagedSource(data_stages.data_stages(config))
        return _bench_latents(args, source, source.stages[source.stage_at(args.start_step)].stream)
    return _bench_clips(args, path, autoencoder.stream_config(config))


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


def _bench_latents(args: argparse.Namespace, source: StepSource, cfg: StreamConfig) -> dict[str, Any]:
    seconds, batches, memory = _time(source, args)
    tokens, text, samples, unreadable = (sum(batch[name] for batch in batches) for name in COUNTS)
    return {
        "tokens_per_s": tokens / seconds,
        "text_tokens_per_s": text / seconds,
        "samples_per_s": samples / seconds,
        "padding": 1 - tokens / (args.steps * cfg.batch_rows * cfg.row_tokens),
        "num_unreadable": unreadable,
        "ms_per_step": 1e3 * seconds / args.steps,
        "num_workers": args.num_workers,
        **memory,
    }


def _bench_clips(args: argparse.Namespace, path: Path | str, cfg: ClipStreamConfig) -> dict[str, Any]:
    source = ClipSource(path, cfg)
    seconds, batches, memory = _time(source, args)
    first = args.start_step + 1
    frames = cfg.batch_size * sum(source.shape(step)[0] for step in range(first, first + args.steps))
    return {
        "frames_per_s": frames / seconds,
        "clips_per_s": args.steps * cfg.batch_size / seconds,
        "num_unreadable": sum(batch["unreadable"] for batch in batches),
        "ms_per_step": 1e3 * seconds / args.steps,
        "num_workers": args.num_workers,
        **memory,
    }


def _time(source: StepSource, args: argparse.Namespace) -> tuple[float, list[dict[str, int]], dict[str, float]]:
    """(seconds, of each batch what counts it, how the memory of all processes went)."""
    kept, resident = [], []
    with make_stream(source, args.start_step, args.steps + 1, args.num_workers) as stream:
        next(stream)
        start = time.monotonic()
        for batch in track(stream, "loading", total=args.steps, console=Console(stderr=True), transient=True):
            kept.append(_count(batch))
            resident.append(resident_bytes())
        seconds = time.monotonic() - start
    return seconds, kept, _memory(resident, kept)


def _count(batch: Batch) -> dict[str, int]:
    """Numbers alone: arrays that are kept would look like a loader that leaks."""
    if "clip_ids" in batch:
        return {"samples": len(batch["clip_ids"]), "unreadable": int(batch["num_unreadable"])}
    return {
        "tokens": int(batch["sample_tokens"].sum()),
        "text": int((batch["text_segment_ids"] > 0).sum()),
        "samples": int((batch["sample_ids"] >= 0).sum()),
        "unreadable": int(batch["num_unreadable"]),
    }


def _memory(resident: list[int], batches: list[dict[str, int]]) -> dict[str, float]:
    """Resident bytes at the end, and their slope over the second half of the samples, when caches are full."""
    samples = np.cumsum([batch["samples"] for batch in batches])
    late = len(resident) // 2
    slope = np.polyfit(samples[late:], resident[late:], 1)[0] if len(resident) > 3 else 0.0
    return {"resident_mib": resident[-1] / 2**20, "growth_kib_per_1000_samples": 1000 * float(slope) / 2**10}


def resident_bytes() -> int:
    """Of this process and its children."""
    me = psutil.Process()
    return sum(process.memory_info().rss for process in (me, *me.children(recursive=True)))
