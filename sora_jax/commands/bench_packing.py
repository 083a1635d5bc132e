"""`sora-jax bench packing`: padding, what is left out, and balance over ranks, for rows of several capacities.

Of a data set only the index is read. Clips count as the latents that an encoder with the given compression would make
of them, scaled down to the short side (never up).
"""

import argparse
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from data_pipeline.plan import DURATIONS, PackingConfig, Plan
from data_pipeline.shards import Index, ShardReader

CAPACITIES = ((8192, 2), (16384, 4), (65536, 16))
"""The usual capacities, and how many of the largest clip are enough: a window's work grows with the samples in it."""
COLUMNS = ("padding", "left_out", "cut_to_fit", "imbalance", "segments_per_row", "text_padding")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench packing`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="clip or latent shards: only the index is read")
    source.add_argument("--synthetic_lengths", type=int, metavar="N", help="N clips of log-normal durations, ten sizes")
    parser.add_argument(
        "--row_tokens",
        type=_numbers,
        help="with commas (default: 8192,16384,65536, or 2, 4 and 16 of the largest clip where that is less)",
    )
    parser.add_argument("--durations", nargs="+", choices=DURATIONS, default=list(DURATIONS))
    parser.add_argument("--row_text", type=int, default=0, help="text tokens of a row (0: a sixteenth of row_tokens)")
    parser.add_argument("--row_segments", type=int, default=0, help="samples of a row (0: one for 256 tokens)")
    parser.add_argument("--batch_rows", type=int, default=64, help="rows of a step")
    parser.add_argument("--ranks", type=int, default=64, help="ranks that share a step's rows")
    parser.add_argument("--window_steps", type=int, default=64, help="steps packed together (0: the training default)")
    parser.add_argument("--windows", type=int, default=2, help="windows that are packed and measured")
    parser.add_argument("--patch", type=int, default=2, help="rows and columns of a patch, in latents")
    parser.add_argument("--short_side", type=int, default=0, help="clips: pixels of the short side (0: as they are)")
    parser.add_argument("--temporal_compression", type=int, default=4)
    parser.add_argument("--spatial_compression", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One line of measurements for each capacity and kind of duration."""
    index = synthetic_index(args.synthetic_lengths, args.seed) if args.synthetic_lengths else _index(args)
    frame_tokens = (index.height // args.patch).astype(np.int64) * (index.width // args.patch)
    largest = int((index.frames * frame_tokens).max())
    capacities = args.row_tokens or [min(most, times * largest) for most, times in CAPACITIES]
    combinations = list(itertools.product(capacities, args.durations))
    console = Console(stderr=True)
    measured = [
        _measure(index, tokens, durations, args)
        for tokens, durations in track(combinations, "packing", console=console, transient=True)
    ]
    _print_table(measured, console)
    return {
        "clips": len(index),
        "mean_tokens": float((index.frames * frame_tokens).mean()),
        "max_tokens": largest,
        "rows": measured,
    }


def latent_index(index: Index, short_side: int, temporal: int, spatial: int, multiple: int) -> Index:
    """What a clip index becomes by encoding: `1 + (frames - 1) // temporal` latents of sides that are multiples of
    `multiple` latents, from clips scaled down to `short_side` (0: not at all), never up."""
    shorter = np.minimum(index.height, index.width)
    scale = np.minimum(1.0, short_side / shorter) if short_side else np.ones(len(index))
    sides = (np.round(side * scale).astype(np.int32) // (spatial * multiple) * multiple for side in
             (index.height, index.width))  # fmt: skip
    height, width = sides
    return dataclasses.replace(
        index, frames=(1 + (index.frames - 1) // temporal).astype(np.int32), height=height, width=width
    )


def synthetic_index(num_clips: int, seed: int) -> Index:
    """Clips of one latent (an image) to 64, log-normal, of ten sizes and aspect ratios; captions of 4 to 80 tokens."""
    rng = np.random.default_rng(seed)
    sizes = np.array(
        [(16, 16), (22, 38), (38, 22), (28, 28), (18, 32), (32, 18), (32, 56), (56, 32), (32, 32), (28, 40)]
    )
    height, width = sizes[rng.integers(0, len(sizes), num_clips)].T.astype(np.int32)
    zeros = np.zeros(num_clips, np.int32)
    return Index(
        split=np.zeros(num_clips, np.uint8),
        shard=zeros,
        position=zeros,
        frames=np.clip(np.exp(rng.normal(2.3, 0.8, num_clips)), 1, 64).astype(np.int32),
        height=height,
        width=width,
        fps=np.full(num_clips, 24, np.float32),
        caption_offsets=np.arange(num_clips + 1, dtype=np.int64),
        caption_tokens=rng.integers(4, 81, num_clips, dtype=np.int32),
    )


def _index(args: argparse.Namespace) -> Index:
    """All clips of the data set, train and held out, as one split of latents."""
    reader = ShardReader(args.data)
    index = dataclasses.replace(reader.index, split=np.zeros_like(reader.index.split))
    if reader.manifest.kind == "latent":
        return index
    return latent_index(index, args.short_side, args.temporal_compression, args.spatial_compression, args.patch)


def _measure(index: Index, row_tokens: int, durations: str, args: argparse.Namespace) -> dict[str, Any]:
    cfg = PackingConfig(
        row_tokens=row_tokens,
        row_text=args.row_text or max(64, row_tokens // 16),
        row_segments=args.row_segments or max(4, row_tokens // 256),
        batch_rows=args.batch_rows,
        patch_size=(1, args.patch, args.patch),
        durations=durations,
        window_steps=args.window_steps,
    )
    start = time.monotonic()
    plan = Plan(index, cfg, args.seed, "bench")
    plan.row(1_000_000, 0)
    start_s = time.monotonic() - start
    report = plan.report(args.windows, args.ranks)
    return {"row_tokens": row_tokens, "durations": durations, **report, "start_at_step_1000000_s": start_s}


def _print_table(measured: list[dict[str, Any]], console: Console) -> None:
    table = Table("tokens", "cut", *(name.replace("_", " ") for name in COLUMNS))
    for line in measured:
        table.add_row(str(line["row_tokens"]), line["durations"], *(f"{line[name]:.4f}" for name in COLUMNS))
    console.print(table)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        problem = f"{text!r} must be whole numbers with commas, such as 8192,16384"
        raise argparse.ArgumentTypeError(problem) from error
