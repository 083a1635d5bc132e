"""doctor says what a run would see of a data set, before any model is built

    sora-jax data doctor --data DIR --config configs/dit_quickstart.py [--out REPORT]

Ends with exit code 1 if the run would train on nothing, or on clips that are held out too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from data_pipeline.doctor import examine_data, report_sections
from data_pipeline.page import render_page
from sora_jax.commands.shared import progress
from sora_jax.commands.train import load_config
from sora_jax.config import choose

EXIT_PROBLEMS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax data doctor`."""
    parser.add_argument("--data", type=Path, required=True, help="folder of a data set: clips or latents")
    parser.add_argument("--config", required=True, metavar="FILE.py", help="the run's")
    parser.add_argument("--out", type=Path, help="write REPORT.json and REPORT.html")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Problems, warnings, and what a step and an epoch are."""
    config = load_config(args.config, args.overrides).to_dict()
    from sora_jax.objectives import autoencoder, diffusion  # jax takes a second, and only the config needs it

    tasks = {"autoencoder": autoencoder.stream_config, "diffusion": diffusion.stream_config}
    stream = choose(tasks, config["train"]["task"], "config.train.task")(config)
    with progress("reading records") as bar:
        report = examine_data(args.data, stream, config["train"]["num_steps"], bar)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        title = "What the run would see"
        page = render_page(title, f"{args.data} with {args.config}", report_sections(report))
        args.out.with_suffix(".html").write_text(page)
    long = ("untrained", "data", "records")
    short = {name: value for name, value in report.items() if name not in long}
    untrained, unreadable = len(report["untrained"]), len(report["records"]["unreadable"])
    found = {**short, "untrained": untrained, "unreadable": unreadable, "clips": report["data"]["clips"]}
    return found | ({"exit_code": EXIT_PROBLEMS} if report["problems"] else {})
