"""`sora-jax bench storm`: kills one short run many times; is anything lost, and does it end as if nothing had happened?

    sora-jax bench storm --config configs/dit_quickstart.py --workdir runs/storm --kills 200 --seed 0 \\
        --config.data.path=runs/quickstart/latents --config.train.num_steps=1000 --config.train.checkpoint_every=5

Needs a config whose start is short, since every kill costs one. Run again, an interrupted storm goes on. docs/storm.md
"""

import argparse
import signal
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline.errors import UserError
from sora_jax.commands.train import load_config

KINDS = "sigkill,sigterm,mid_save,sigterm_in_save,one_of_two,link"
FIXED = {"log_every": 1, "preview_every": 0, "eval_every": 0}
"""Fields of config.train that a storm needs, or has no use for"""
TABLE = "storm.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench storm`."""
    parser.add_argument("--config", required=True, metavar="FILE.py", help="the run that is killed")
    parser.add_argument("--workdir", required=True, type=Path, help="the storm's folder: made, or gone on with")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=0, help="no more kills after so long (0: as long as it takes)")
    parser.add_argument("--kinds", default=KINDS, help=f"some of {KINDS}; link needs root and the command ip")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn: kinds, moments, victims")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Storms, compares, prints the table; exit code 1 when something was lost or the runs differ."""
    from sora_jax.evaluation.storm import Storm, run_storm
    from sora_jax.evaluation.storm_verdict import judge, markdown, rich_table, tabulate

    train = load_config(args.config, args.overrides).to_dict()["train"]
    num_steps, every = train["num_steps"], train["checkpoint_every"]
    if num_steps < 2 * every or every < 1:
        raise UserError(
            f"a run of {num_steps} steps that is saved every {every} has nothing to resume from; set "
            "config.train.num_steps and config.train.checkpoint_every"
        )
    fixed = [f"--config.train.{name}={value}" for name, value in FIXED.items()]
    words = ("train", "--config", args.config, *args.overrides, *fixed)
    kinds = tuple(kind for kind in args.kinds.split(",") if kind)
    storm = Storm(words, args.workdir, num_steps, args.kills, kinds, args.seed, 60 * args.minutes or float("inf"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the run's processes end with the storm
    rows = run_storm(storm)
    lines = tabulate(rows)
    Console(stderr=True, width=160).print(rich_table(lines))
    (args.workdir / TABLE).write_text(markdown(lines))
    return judge(storm, rows)
