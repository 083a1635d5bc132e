"""`sora-jax data`: synth renders a world, build makes clip shards of a folder, outcomes says what each file became;
curate makes data sets of anything, doctor says what a run would see of one, show draws it."""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.build import BuildConfig, build
from data_pipeline.errors import UserError
from data_pipeline.outcomes import outcomes_table
from data_pipeline.synthetic.generate import WORLD_NAMES, WorldConfig, generate
from sora_jax.commands import data_curate, data_doctor, data_show
from sora_jax.commands.shared import add_workers, progress

MORE = {"curate": data_curate, "doctor": data_doctor, "show": data_show}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="data_verb", required=True, metavar="synth|build|outcomes|curate|doctor|show")
    synth = verbs.add_parser("synth", help="render a procedural captioned world with ground truth")
    synth.add_argument("--out", type=Path, required=True, help="folder to write to")
    synth.add_argument("--clips", type=int, required=True, help="number of clips")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--world", choices=sorted(WORLD_NAMES), default="rich")
    synth.add_argument("--size", help="WIDTHxHEIGHT for all clips instead of the world's own sizes")
    synth.add_argument("--frames", type=int, help="frames of all clips instead of the world's own choice")
    add_workers(synth)
    synth.set_defaults(data_run=_synth)

    shards = verbs.add_parser("build", help="a folder of videos and images to clip shards")
    defaults = BuildConfig()
    shards.add_argument("--videos", type=Path, required=True, help="folder of videos and images, searched through")
    shards.add_argument("--out", type=Path, required=True, help="folder of the data set")
    shards.add_argument(
        "--captions", type=Path, help="captions .csv or .jsonl (default: captions.jsonl|csv in --videos)"
    )
    shards.add_argument(
        "--tokenizer",
        type=Path,
        help="sentencepiece model, or a data set that has one (default: trained on the train captions)",
    )
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
    add_workers(shards)
    shards.set_defaults(data_run=_build)

    table = verbs.add_parser("outcomes", help="a Markdown table of what a build made of every input")
    table.add_argument("--data", type=Path, required=True, help="folder of a built data set")
    table.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    table.set_defaults(data_run=_outcomes)

    for name, module in MORE.items():
        parser = verbs.add_parser(name, help=str(module.__doc__).splitlines()[0])
        module.add_arguments(parser)
        parser.set_defaults(data_run=module.run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    return args.data_run(args)


def _synth(args: argparse.Namespace) -> dict[str, Any]:
    config = WorldConfig(args.world, args.clips, args.seed, _size(args.size), args.frames)
    with progress(f"rendering the {args.world} world") as report:
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
    with progress("reading videos") as report:
        counts = build(args.videos, args.out, config, args.captions, args.tokenizer, args.workers, on_progress=report)
    return {**counts, "out": str(args.out)}


def _outcomes(args: argparse.Namespace) -> dict[str, Any]:
    text, counts = outcomes_table(args.data)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    return {**counts, "out": str(args.out)}


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UserError(f"--size {text!r} must be WIDTHxHEIGHT, such as 64x48")
    return int(width), int(height)
