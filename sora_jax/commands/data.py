"""`sora-jax data`: synth renders a world, build makes clip shards of a folder, outcomes says what each file became."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipeline.build import BuildConfig, build
from data_pipeline.errors import UserError
from data_pipeline.outcomes import outcomes_table
from data_pipeline.synthetic.generate import WORLD_NAMES, WorldConfig, generate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="synth|build|outcomes")
    synth = verbs.add_parser("synth", help="render a procedural captioned world with ground truth")
    synth.add_argument("--out", type=Path, required=True, help="folder to write to")
    synth.add_argument("--clips", type=int, required=True, help="number of clips")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--world", choices=sorted(WORLD_NAMES), default="rich")
    synth.add_argument("--size", help="WIDTHxHEIGHT for all clips instead of the world's own sizes")
    synth.add_argument("--frames", type=int, help="frames of all clips instead of the world's own choice")
    _add_workers(synth)
    synth.set_defaults(data_run=_synth)

    shards = verbs.add_parser("build", help="a folder of videos and images to clip shards")
    defaults = BuildConfig()
    shards.add_argument("--videos", type=Path, required=True, help="folder of videos and images, searched through")
    shards.add_argument("--out", type=Path, required=True, help="folder of the data set")
    shards.add_argument(
        "--captions", type=Path, help="captions .csv or .jsonl (default: captions.jsonl|csv in --videos)"
    )
    shards.add_argument("--tokenizer", type=Path, help="sentencepiece model (default: trained on the train captions)")
    shards.add_argument("--heldout_fraction", type=float, default=defaults.heldout_fraction)
    shards.add_argument(
        "--group_regex",
        default=defaults.group_regex,
        help="regular expression on paths whose part (?P<group>…) names the film or episode (default: DROID's names)",
    )
    shards.add_argument("--max_seconds", type=float, default=defaults.max_seconds, help="longer videos become windows")
    shards.add_argument("--records_per_shard", type=int, default=defaults.records_per_shard)
    shards.add_argument("--vocab_size", type=int, default=defaults.vocab_size)
    shards.add_argument("--license", default=defaults.license, help="licence of files whose caption line names none")
    _add_workers(shards)
    shards.set_defaults(data_run=_build)

    table = verbs.add_parser("outcomes", help="a Markdown table of what a build made of every input")
    table.add_argument("--data", type=Path, required=True, help="folder of a built data set")
    table.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    table.set_defaults(data_run=_outcomes)


def run(args: argparse.Namespace) -> dict[str, Any]:
    return args.data_run(args)


def _synth(args: argparse.Namespace) -> dict[str, Any]:
    config = WorldConfig(args.world, args.clips, args.seed, _size(args.size), args.frames)
    with _progress(f"rendering the {args.world} world") as report:
        clips = generate(args.out, config, args.workers, on_progress=lambda done: report(done, args.clips))
    return {"clips": clips, "world": args.world, "out": str(args.out), "captions": str(args.out / "captions.jsonl")}


def _build(args: argparse.Namespace) -> dict[str, Any]:
    config = BuildConfig(
        heldout_fraction=args.heldout_fraction,
        group_regex=args.group_regex,
        max_seconds=args.max_seconds,
        records_per_shard=args.records_per_shard,
        vocab_size=args.vocab_size,
        license=args.license,
    )
    with _progress("reading videos") as report:
        counts = build(args.videos, args.out, config, args.captions, args.tokenizer, args.workers, on_progress=report)
    return {**counts, "out": str(args.out)}


def _outcomes(args: argparse.Namespace) -> dict[str, Any]:
    text, counts = outcomes_table(args.data)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    return {**counts, "out": str(args.out)}


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_workers, default=os.cpu_count() or 1, help="processes; the result is the same"
    )


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UserError(f"--size {text!r} must be WIDTHxHEIGHT, such as 64x48")
    return int(width), int(height)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields `report(done, total)`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
