"""`sora-jax evaluate --run RUN` in place of `--generated`: samples of a run, drawn for the prompts of the real clips.

    sora-jax evaluate --metric synth-fvd --run RUN --real CLIPS --num_generated 96 --out synth.json

They stay beside `--out`, in a folder named after the checkpoint, and are drawn once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from sora_jax.commands.shared import check_least, progress
from sora_jax.evaluation.protocols import PROTOCOLS
from sora_jax.evaluation.run_samples import Draw, draw_samples
from sora_jax.generation.api import Generator
from sora_jax.generation.options import SampleOptions

MOST = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of samples that are drawn here."""
    group = parser.add_argument_group("--run in place of --generated")
    group.add_argument("--step", type=int, help="checkpoint to sample from (default: the newest)")
    group.add_argument("--raw", action="store_true", help="use the raw parameters instead of their EMA")
    group.add_argument("--seed", type=int, default=0, help="sample i has this seed + i (default: %(default)s)")


def draw(args: argparse.Namespace, metrics: Sequence[str]) -> Path:
    """The folder of samples. Raises UserError where there are no prompts to sample from, and as the sampler does."""
    if args.real is None:
        raise UserError("--run samples for the prompts of real clips: name them with --real DIR")
    check_least(args, num_generated=1)
    generator = Generator.from_run(args.run, args.step, ema=not args.raw, latents=args.latents)
    options = SampleOptions(seed=args.seed, steps=args.steps, guidance=args.guidance, solver=args.solver)
    taken = [protocol for protocol in PROTOCOLS.values() if protocol.name in (*metrics, *_named(args))]
    needed = [args.frames or protocol.needed_frames for protocol in taken]
    wanted = Draw(args.real, args.split, args.num_generated or args.num_real or MOST, options, max(needed, default=1))
    parameters = "raw" if args.raw else "ema"
    out = args.out.parent / f"{args.out.stem}_samples" / f"{generator.run.step}_{parameters}"
    with progress(f"sampling step {generator.run.step}") as told:
        return draw_samples(generator, wanted, out, told)


def _named(args: argparse.Namespace) -> list[str]:
    return (args.protocol or "").split(",")
