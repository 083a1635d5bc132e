"""`sora-jax sample`: text to video or image, from a trained run. What Python can do too: `sora_jax.Generator`."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

from data_pipeline.errors import UserError
from sora_jax.commands import expander, sample_long
from sora_jax.generation.api import Generator
from sora_jax.generation.bulk import Bulk, sample_in_bulk
from sora_jax.generation.files import ENDINGS, NAMES, check_file, read_prompts
from sora_jax.generation.manifest import forget
from sora_jax.generation.options import OF_EXPANSION, SampleOptions, changed
from sora_jax.parallel import parse_mesh
from sora_jax.training.compile_cache import HELP as COMPILE_CACHE_HELP
from sora_jax.training.distributed import barrier, is_leader, joined


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, type=Path, help="a diffusion run, from `sora-jax train`")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", help="what to show")
    what.add_argument("--prompts", type=Path, help="a file with a prompt on each line; --out is then a folder")
    parser.add_argument("--out", required=True, type=Path, help="file ending in mp4, webm, gif or png; or a folder")
    add_options(parser)
    sample_long.add_arguments(parser)
    expander.add_arguments(parser)
    add_folder_options(parser)
    parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest)")
    parser.add_argument("--raw", action="store_true", help="use the raw parameters instead of their EMA")
    parser.add_argument("--latents", type=Path, help="the latents' folder, if it has moved since training")
    parser.add_argument("--tile", type=int, help="decode in tiles of so many pixels; 0: whole (default: if large)")
    parser.add_argument("--text_encoder", type=Path, help="the frozen text encoder's folder, if it has moved")


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """How many samples go into a folder, and who makes them; docs/generation.md."""
    parser.add_argument("--num", type=int, help="number of files, over the prompts in turn (default: one a prompt)")
    parser.add_argument("--names", choices=NAMES, default="slug", help="vbench: {prompt}-{index}, as VBench reads them")
    parser.add_argument("--overwrite", action="store_true", help="begin a folder anew that holds another recipe's")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="the I-th of N jobs for a folder")
    parser.add_argument("--devices", type=int, default=0, help="local devices that sample; 0: all")
    parser.add_argument("--format", choices=ENDINGS, help="file ending inside a folder (default: mp4; png for images)")
    parser.add_argument("--rows_per_batch", type=int, default=8, help="packed rows that are sampled at once")
    parser.add_argument(
        "--mesh", help="axes and sizes, as in training: data=2,context=4 (default: rows on each device)"
    )
    parser.add_argument("--compile_cache", metavar="DIR", help=COMPILE_CACHE_HELP)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a sample: each has the name of a field of `SampleOptions`."""
    parser.add_argument("--negative_prompt", default="", help="what to lead away from, in the empty prompt's place")
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: the run's preview)")
    parser.add_argument("--frames", type=int, help="number of frames; 1 is an image (default: the run's preview)")
    parser.add_argument("--image_only", "--image-only", action="store_true", help="images: --frames 1, as .png has")
    parser.add_argument("--fps", type=float, help="frames per second (default: the run's preview)")
    parser.add_argument("--seed", type=int, default=0, help="prompt i of a file uses seed + i")
    parser.add_argument("--steps", type=int, default=20, help="solver steps")
    parser.add_argument("--guidance", type=float, default=6.0, help="guidance scale; 1 is none")
    parser.add_argument("--solver", default="unipc", help="euler, heun, midpoint, dpm++ or unipc")
    parser.add_argument(
        "--guidance_interval", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="times of the flow, from 0 (clean) to 1 (noise), at which guidance acts",
    )  # fmt: skip
    parser.add_argument("--guidance_rescale", type=float, default=0.0, help="0 to 1: how much of contrast is kept")
    parser.add_argument("--shift", type=float, default=0.0, help="towards noise; 0: by the number of tokens")
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
    is_folder = args.prompts is not None or args.num is not None
    in_folder = args.format or ("png" if args.image_only else "mp4")
    ending = in_folder if is_folder else args.out.suffix.lower().lstrip(".")
    options = read_options(args, is_image=args.image_only or ending == "png")
    if args.rows_per_batch < 1:
        raise UserError(f"--rows_per_batch is {args.rows_per_batch}, but must be at least 1")
    if args.prompt is None and args.prompts is None and args.storyboard is None and args.upscale is None:
        raise UserError("say what to show, with --prompt, --prompts or --storyboard")
    if sample_long.is_asked(args):
        return sample_long.run(args, options, _load(args))
    if not is_folder:
        return _one_file(args, options)
    prompts = [args.prompt] if args.prompts is None else read_prompts(args.prompts)
    if args.names == "vbench":
        prompts = list(dict.fromkeys(prompts))  # one set of indices for each prompt, as VBench looks for them
    with joined():
        return _folder(args, options, tuple(prompts), ending)


def _one_file(args: argparse.Namespace, options: SampleOptions) -> dict[str, Any]:
    generator = _load(args)
    options = changed(options, prompt=args.prompt).resolved(generator.run.preview)
    check_file(args.out, options.fewest_frames())
    return generator.video(args.prompt, options).save(args.out)


def _folder(args: argparse.Namespace, options: SampleOptions, prompts: tuple[str, ...], ending: str) -> dict[str, Any]:
    """This process's share of many samples; the manifest is merged when all of them have theirs."""
    index, count = read_shard(args.shard)
    generator = _load(args)
    shard = index * jax.process_count() + jax.process_index(), count * jax.process_count()
    num = len(prompts) if args.num is None else args.num
    resolved = options.resolved(generator.run.preview)
    job = Bulk(prompts, num, args.out, resolved, args.names, ending, args.rows_per_batch)
    if args.overwrite and count > 1:
        raise UserError("--overwrite and --shard: each job would delete the others' samples; delete the folder first")
    if args.overwrite and is_leader():
        forget(args.out)
    barrier("folder")
    devices = jax.local_devices()[: args.devices or None]
    with Progress(console=Console(stderr=True), disable=not is_leader()) as progress:
        bar = progress.add_task("sampling", total=None)
        manifest, result = sample_in_bulk(
            generator, job, shard=shard, devices=devices,
            told=lambda done, total: progress.update(bar, completed=done, total=total),
        )  # fmt: skip
    barrier("sampled")
    return {**result, "missing": manifest.merge(num) if is_leader() else None}


def _load(args: argparse.Namespace) -> Generator:
    return Generator.from_run(
        args.run,
        args.step,
        ema=not args.raw,
        latents=args.latents,
        text_encoder=args.text_encoder,
        tile=args.tile,
        mesh=None if args.mesh is None else parse_mesh(args.mesh),
        expander=expander.read_expander(args),
    )


def read_shard(text: str) -> tuple[int, int]:
    """(index, count) of "INDEX/COUNT"."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard is '{text}', but must be INDEX/COUNT, from 0/COUNT on, such as 0/4")
    return int(match[1]), int(match[2])


def read_options(args: argparse.Namespace, is_image: bool) -> SampleOptions:
    """The options that the command line names, checked; the prompt is not among them. An image has one frame."""
    if args.image_only and args.frames not in (None, 1):
        raise UserError(f"--image_only makes one frame, but --frames is {args.frames}; leave one of them out")
    if is_image and args.frames is None:
        args.frames = 1
    names = [field.name for field in dataclasses.fields(SampleOptions) if field.name not in ("prompt", *OF_EXPANSION)]
    given = {name: getattr(args, name) for name in names}
    return SampleOptions(**{n: tuple(v) if isinstance(v, list) else v for n, v in given.items()})
