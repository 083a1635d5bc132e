"""`sora-jax evaluate scaling`: a scaling law through a sweep's runs, and the best size for a budget.

    sora-jax evaluate scaling --sweep runs/scaling --budget 1e18 1e20 --out runs/scaling/fit.json

Reads the parameters, tokens and last held-out loss of every finished member; or `--points FILE.csv`, with the columns
parameters, tokens, loss. The figure is beside `--out`, with the ending .png.
"""

import argparse
import csv
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.shared import write_result
from sora_jax.sweeps.directory import read_members
from sora_jax.sweeps.scaling import Point, fit, interval, resampled
from sora_jax.sweeps.scaling_figure import draw_scaling
from sora_jax.sweeps.status import FINISHED, read_standing
from sora_jax.training.compute import FLOPS, read_spent

EXPONENTS = ("alpha", "beta", "e")

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax evaluate scaling`."""
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--sweep", type=Path, metavar="DIR", help="the folder of `sora-jax sweep run`")
    given.add_argument("--points", type=Path, metavar="FILE.csv", help="columns parameters, tokens, loss")
    parser.add_argument("--budget", type=float, nargs="+", default=[], metavar="C", help="FLOPs to find the size for")
    parser.add_argument("--bootstrap", type=int, default=100, metavar="N", help="resamplings (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The law with its intervals. Raises UserError for too few finished runs, and for budgets that are none."""
    if args.bootstrap < 0 or any(not (0 < c < math.inf) for c in args.budget):
        raise UserError(f"--budget is {args.budget} and --bootstrap {args.bootstrap}: FLOPs above 0, and at least 0")
    points = read_points(args.points) if args.points else sweep_points(args.sweep)
    law, laws = fit(points), resampled(points, args.bootstrap)
    figure = args.out.with_suffix(".png")
    draw_scaling(points, law, figure)
    best = []
    for budget in args.budget:
        spread = [law.best(budget) for law in laws]
        best.append(
            {"flops": budget}
            | dataclasses.asdict(law.best(budget))
            | {f"{name}_interval": interval([getattr(p, name) for p in spread]) for name in ("parameters", "loss")}
        )
    largest = max(point.flops for point in points)
    for budget in args.budget:
        if budget > 100 * largest:
            logger.warning("a budget of %.3g FLOPs is %.0f times the largest run's", budget, budget / largest)
    result = {
        "law": dataclasses.asdict(law),
        "intervals": {name: interval([getattr(one, name) for one in laws]) for name in EXPONENTS},
        "flops_per_parameter_and_token": FLOPS,
        "best": best,
        "figure": str(figure),
        "points": [dataclasses.asdict(point) | {"flops": point.flops} for point in points],
    }
    write_result(args.out, result)
    return {n: v for n, v in result.items() if n != "points"} | {"runs": len(points), "out": str(args.out)}


def read_points(path: Path) -> list[Point]:
    """The rows of a CSV file. Raises UserError for one that cannot be read so."""
    try:
        with path.open(newline="") as file:
            return [
                Point(*(float(row[name]) for name in ("parameters", "tokens", "loss"))) for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no columns parameters, tokens, loss of numbers ({error!r})") from error


def sweep_points(out: Path) -> list[Point]:
    """One point for each finished member of a sweep that measured a held-out loss; the others are named."""
    points = []
    for member in read_members(out):
        standing = read_standing(member, out)
        if standing.state != FINISHED or standing.held_out_loss is None:
            logger.warning("left out: member %d (%s) is %s", member.index, member.name, standing.state)
            continue
        spent = read_spent(out / member.name)
        tokens = spent.tokens_at(member.num_steps)
        if tokens is None:
            logger.warning("left out: member %d (%s) has no tokens to count", member.index, member.name)
            continue
        points.append(Point(spent.parameters, tokens, standing.held_out_loss))
    return points
