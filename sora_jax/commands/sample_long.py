"""What `sora-jax sample` does beyond one canvas: long videos in windows, storyboards, drafts that are refined."""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.generation.api import Generator
from sora_jax.generation.files import check_file
from sora_jax.generation.options import SampleOptions, changed
from sora_jax.generation.upscale import draft_options, upscale_options, write_note


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("long and large videos", "docs/long_video.md")
    group.add_argument("--storyboard", type=Path, help="a YAML file of shots: what is shown from when on")
    group.add_argument("--window", type=int, help="frames sampled at once of a longer video; 0: the run's preview")
    group.add_argument("--draft", action="store_true", help="sample at half of --size, with a note for --upscale")
    group.add_argument("--upscale", type=Path, metavar="DRAFT", help="refine this file; with --draft, make it first")


def is_asked(args: argparse.Namespace) -> bool:
    """Whether any of these options is given."""
    return args.storyboard is not None or args.window is not None or args.draft or args.upscale is not None


def run(args: argparse.Namespace, options: SampleOptions, generator: Generator) -> dict[str, Any]:
    """One file, by the options of the command line; returns the line of its manifest."""
    if args.prompts is not None or args.num is not None:
        raise UserError("--prompts and --num make a folder of short samples: give one --prompt, or a --storyboard")
    large, films = args.draft or args.upscale is not None, args.storyboard is not None or args.window is not None
    if large and films:
        raise UserError("--draft and --upscale are of one canvas: leave out --window and --storyboard")
    if large:
        return _large(args, options, generator)
    if args.storyboard is not None and args.prompt is not None:
        raise UserError("a --storyboard has its own prompts: leave --prompt out")
    film = generator.film(
        args.prompt or "", changed(options, frames=None), storyboard=args.storyboard, window=args.window or 0,
        frames=options.frames,
    )  # fmt: skip
    return film.save(args.out)


def _large(args: argparse.Namespace, options: SampleOptions, generator: Generator) -> dict[str, Any]:
    check_file(args.out, 1)
    if args.draft:
        wanted = changed(options, prompt=args.prompt or "").resolved(generator.run.preview)
        path = args.upscale or args.out
        check_file(path, wanted.fewest_frames())
        assert isinstance(wanted.size, tuple)
        line = generator.video(wanted.prompt, draft_options(wanted, generator.run)).save(path)
        line = write_note(path, line, wanted.size, args.run)
        if args.upscale is None:
            return line
    options = upscale_options(args.upscale, options, args.prompt)
    return {**generator.video(options.prompt, options).save(args.out), "draft": str(args.upscale)}
