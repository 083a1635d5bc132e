"""`sora-jax bench checkpoint`: what saves, restores and restarts cost, for a run's own config."""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.train import OBJECTIVES, load_config
from sora_jax.config import choose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench checkpoint`."""
    parser.add_argument("--config", required=True, metavar="FILE.py", help="the run whose checkpoints are measured")
    parser.add_argument("--steps", type=int, default=300, help="of the run that is timed")
    parser.add_argument("--every", type=int, default=100, help="steps from save to save")
    parser.add_argument("--dir", type=Path, help="the disk to save on (default: the temporary folder)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Share of the time that steps stand still (at most 0.02 is the aim), seconds and bytes, seconds to restart."""
    if args.steps < 2 * args.every:
        raise UserError(f"--steps is {args.steps}, but must be at least {2 * args.every}: two saves {args.every} apart")
    config = load_config(args.config, args.overrides).to_dict()
    module = importlib.import_module(choose(OBJECTIVES, config["train"]["task"], "config.train.task"))
    from sora_jax.training.save_cost import WITH, measure_saves

    if args.dir:
        args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        measured = measure_saves(module.prepare(config), Path(folder), args.steps, args.every)
        restarts = {f"restart_{name}": _restart(args, Path(folder), Path(folder) / WITH) for name in ("cold", "warm")}
    return {**measured, **restarts}


def _restart(args: argparse.Namespace, folder: Path, run_dir: Path) -> dict[str, float]:
    """Seconds of a new process from its start to the end of its first step, and where they went.

    The first time the compilation cache of the run is empty, the second time it is what the first one left.
    """
    from sora_jax.training.ledger import read_ledger
    from sora_jax.training.save_cost import durations

    copy = folder / "restarted"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run_dir, copy)
    settings = {"num_steps": args.steps + 1, "eval_every": 0, "preview_every": 0, "checkpoint_every": 0}
    command = [sys.executable, "-m", "sora_jax.commands.main", "train", "--config", args.config, "--workdir", str(copy)]
    command += [*args.overrides, *(f"--config.train.{name}={value}" for name, value in settings.items())]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the restarted run failed with code {done.returncode}: {done.stderr.strip()[-500:]}")
    marks = read_ledger(copy)
    started = max(i for i, mark in enumerate(marks) if mark["kind"] == "start")
    own = marks[started:]
    stepped = next(i for i, mark in enumerate(own) if mark["kind"] == "compilation") + 1
    parts = {kind: sum(durations(own[: stepped + 1], kind)) for kind in ("start", "restore", "compilation")}
    return {"to_first_step_seconds": own[stepped]["time"] - own[0]["time"], **parts}
