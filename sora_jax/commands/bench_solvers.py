"""`sora-jax bench solvers`: how near each solver comes to 1000 Euler steps, by network calls, for a trained run.

    sora-jax bench solvers --run runs/quickstart/dit --guidance 1,3 --out solvers

Writes `solvers.png` and `solvers.json` into the folder `--out`. A call is one velocity: under guidance it takes the
network with the prompt and without, and costs twice as much.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error
from sora_jax.config import choose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench solvers`."""
    parser.add_argument("--run", required=True, type=Path, help="a generator's run directory")
    parser.add_argument("--out", required=True, type=Path, help="folder for solvers.png and solvers.json")
    parser.add_argument("--prompts", type=Path, help="a file with a prompt on each line (default: the run's preview)")
    parser.add_argument("--solvers", default="euler,heun,midpoint,dpm++,unipc", help="what is compared")
    parser.add_argument("--calls", default="5,10,20,40,80", help="numbers of network calls")
    parser.add_argument("--guidance", default="1,3", help="guidance scales, each with a panel; 1 is none")
    parser.add_argument("--reference_steps", type=int, default=1000, help="Euler steps of the reference")
    parser.add_argument("--latents", type=Path, help="the latents' folder, if it has moved since training")
    parser.add_argument("--rows_per_batch", type=int, default=8, help="packed rows that are sampled at once")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Distances of all solvers, as `solver_distance.py` defines them."""
    calls, scales = [int(n) for n in _numbers(args.calls, "--calls")], _numbers(args.guidance, "--guidance")
    if min(*calls, args.reference_steps) < 1:
        raise UserError(f"--calls {args.calls} and --reference_steps {args.reference_steps} must all be at least 1")
    from sora_jax.diffusion.samplers import SOLVERS  # after the numbers are known to be good: jax takes a second
    from sora_jax.evaluation.solver_distance import as_json, draw_distances, measure_distances
    from sora_jax.evaluation.step_speed import describe_devices
    from sora_jax.generation.loading import load_run

    solvers = {name: choose(SOLVERS, name, "a solver") for name in args.solvers.split(",")}
    trained = load_run(args.run, latents=args.latents)
    requests = _requests(args, trained)
    curves = [
        measure_distances(trained, requests, scale, solvers, calls, args.reference_steps, _say, args.rows_per_batch)
        for scale in scales
    ]
    first = requests[0]
    result = {
        **describe_devices(),
        "samples": len(requests),
        "size": f"{first.width}x{first.height}",
        "frames": first.num_frames,
        "step": trained.step,
        "curves": as_json(curves),
    }
    draw_distances(curves, args.out / "solvers.png")
    try:
        (args.out / "solvers.json").write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise from_os_error(error, f"writing {args.out}") from error
    return result


def _requests(args: argparse.Namespace, trained: Any) -> list[Any]:
    """What is sampled, with seeds from 0 on, in the size of the run's preview."""
    from sora_jax.generation.files import read_prompts
    from sora_jax.generation.options import SampleOptions

    prompts = read_prompts(args.prompts) if args.prompts else trained.preview.prompts
    if not prompts:
        raise UserError(f"the preview of {args.run} has no prompts; name a file of them with --prompts")
    return [SampleOptions(p, seed=i).resolved(trained.preview).request() for i, p in enumerate(prompts)]


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{option} is '{text}', but must be numbers with commas, such as 1,3")
    return numbers


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
