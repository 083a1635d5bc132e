"""`sora-jax sample`: text to video or image, from a trained run. What Python can do too: `sora_jax.Generator`."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from sora_jax.generation.api import Generator
from sora_jax.generation.files import ENDINGS, check_file, name_files, read_prompts
from sora_jax.generation.options import SampleOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, type=Path, help="a diffusion run, from `sora-jax train`")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what to show")
    what.add_argument("--prompts", type=Path, help="a file with a prompt on each line; --out is then a folder")
    parser.add_argument("--out", required=True, type=Path, help="file ending in mp4, webm, gif or png; or a folder")
    add_options(parser)
    parser.add_argument("--format", choices=ENDINGS, default="mp4", help="file ending inside a folder")
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest)")
    parser.add_argument("--raw", action="store_true", help="use the raw parameters instead of their EMA")
    parser.add_argument("--latents", type=Path, help="the latents' folder, if it has moved since training")
    parser.add_argument("--tile", type=int, default=0, help="decode frames in tiles of so many pixels; 0: whole")
    parser.add_argument("--text_encoder", type=Path, help="the frozen text encoder's folder, if it has moved")
    parser.add_argument("--rows_per_batch", type=int, default=8, help="packed rows that are sampled at once")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a sample: each has the name of a field of `SampleOptions`."""
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: the run's preview)")
    parser.add_argument("--frames", type=int, help="number of frames; 1 is an image (default: the run's preview)")
    parser.add_argument("--fps", type=float, help="frames per second (default: the run's preview)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i of a file uses seed + i")
    parser.add_argument("--steps", type=int, default=30, help="solver steps")
    parser.add_argument("--guidance", type=float, default=6.0, help="guidance scale; 1 is none")
    parser.add_argument("--solver", default="euler", help="euler, heun, midpoint, dpm++ or unipc")
    add_conditions(parser)


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """Files that a sample begins from: the fields of `ConditionOptions`."""
    group = parser.add_argument_group("conditions", "images or videos of any format; docs/prompting.md")
    group.add_argument("--image", action="append", help="a picture to animate, or to pass by; may be given again")
    group.add_argument("--at", action="append", type=float, help="when to show the --image, in seconds (default: 0)")
    group.add_argument("--video", help="a clip to extend, loop, connect or edit; --frames then counts what is new")
    group.add_argument("--extend", help="go on from --video, forward, or come to it, backward")
    group.add_argument("--loop", action="store_true", help="go on from --video until it meets its own beginning")
    group.add_argument("--connect", help="a clip to end with, after a transition from --video")
    group.add_argument("--strength", type=float, help="edit --video: 1 makes it anew, smaller keeps more of it")
    group.add_argument("--mask", help="make --video anew where this picture or video is white")
    group.add_argument("--context", type=int, default=0, help="known frames that the model sees at a seam")
    group.add_argument("--fit", default="crop", help="crop, pad or stretch: how another shape comes to --size")


def run(args: argparse.Namespace) -> dict[str, Any]:
    options = read_options(args)
    prompts = [args.prompt] if args.prompt is not None else read_prompts(args.prompts)
    generator = Generator.from_run(
        args.run, args.step, ema=not args.raw, latents=args.latents, text_encoder=args.text_encoder, tile=args.tile
    )
    wanted = [generator.resolve(prompt, number, options) for number, prompt in enumerate(prompts)]
    files = [args.out] if args.prompt is not None else name_files(args.out, prompts, args.format)
    for path, one in zip(files, wanted, strict=True):
        check_file(path, one.frames or 1)
    generator.check(wanted)  # an illegal size is one line of error, not one below a progress bar
    written: list[dict[str, Any]] = [{} for _ in wanted]
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("sampling", total=len(wanted))
        for number, sample in generator.batch(wanted, args.rows_per_batch):
            written[number] = sample.save(files[number])
            progress.advance(bar)
    if args.prompt is not None:
        return written[0]
    lines = "".join(json.dumps(line) + "\n" for line in written)
    (args.out / "samples.jsonl").write_text(lines)
    return {"samples": len(written), "out": str(args.out), "step": generator.run.step}


def read_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that the command line names, checked; the prompt is not among them."""
    names = [field.name for field in dataclasses.fields(SampleOptions) if field.name != "prompt"]
    options = {name: getattr(args, name) for name in names}
    SampleOptions(**options)
    return options
