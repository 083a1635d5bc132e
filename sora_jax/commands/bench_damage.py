"""`sora-jax bench damage`: how much of the damage to a checkpoint's files `sora-jax checkpoint verify` finds."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench damage`."""
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="its newest checkpoint is copied")
    parser.add_argument("--samples", type=int, default=200, help="how often one file is damaged")
    parser.add_argument("--seed", type=int, default=0, help="of where and how")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Counts of what was tried and found; exit code 1 if anything was missed."""
    if args.samples < 1:
        raise UserError(f"--samples is {args.samples}, but must be at least 1")
    from sora_jax.training.damage import measure_detection

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = measure_detection(args.run, Path(folder), args.samples, args.seed)
    missed = {"exit_code": 1} if found["missed"] or found["restore_refused"] < args.samples else {}
    return {**found, "seconds": time.perf_counter() - begun, **missed}
