"""`sora-jax bench loop`: the training loop's time over the bare jitted step's, for a run's own config."""

import argparse
import importlib
from typing import Any

from sora_jax.commands.train import OBJECTIVES, load_config
from sora_jax.config import choose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench loop`."""
    parser.add_argument("--config", required=True, metavar="FILE.py", help="the run whose loop is measured")
    parser.add_argument("--steps", type=int, default=50, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds, of which the best are compared")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step, bare and in the loop, and their ratio (at most 1.03 is the aim)."""
    config = load_config(args.config, args.overrides).to_dict()
    module = importlib.import_module(choose(OBJECTIVES, config["train"]["task"], "config.train.task"))
    from sora_jax.training.overhead import measure_overhead

    return measure_overhead(module.prepare(config), args.steps, args.rounds)
