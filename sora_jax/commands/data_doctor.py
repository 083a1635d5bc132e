"""doctor says what a run would see of its data, before any model is built

    sora-jax data doctor --config configs/dit_quickstart.py [--data DIR] [--out REPORT]

Of a generator's run with a mixture of data sets or with stages, each data set and each stage; of a captioner's, the
captions of each stage; of an expander's, the pairs of captions. Ends with exit code 1 if the run, or a stage or data
set of it, would train on nothing, or on clips that are held out too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from data_pipeline.doctor import examine_data, report_sections
from data_pipeline.doctor_captions import examine_captions
from data_pipeline.doctor_pairs import examine_pairs
from data_pipeline.doctor_stages import examine_stages, stages_sections
from data_pipeline.page import render_page
from sora_jax.commands.shared import check_task, progress, set_data
from sora_jax.commands.train import load_config

EXIT_PROBLEMS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax data doctor`."""
    parser.add_argument("--data", type=Path, help="clips or latents in place of config.data.path")
    parser.add_argument("--config", required=True, metavar="FILE.py", help="the run's")
    parser.add_argument("--out", type=Path, help="write REPORT.json and REPORT.html")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Problems, warnings, and what a step and an epoch are."""
    config = load_config(args.config, args.overrides).to_dict()
    task = check_task(config, "autoencoder", "captioner", "diffusion", "expander")
    if args.data:
        set_data(config, args.data)
    data, num_steps = Path(config["data"]["path"]), config["train"]["num_steps"]
    from sora_jax.objectives import (  # jax takes a second: only the config needs it
        autoencoder,
        captioner,
        data_stages,
        expander,
    )

    stages = config["data"].get("stages") or config["data"].get("mixture")
    has_stages = task == "diffusion" and bool(stages)
    with progress("reading records") as bar:
        if task == "captioner":
            report = examine_captions(data, captioner.stream_config(config), num_steps, bar)
        elif task == "expander":
            report = examine_pairs(data, expander.pair_config(config), num_steps, bar)
        elif has_stages:
            report = examine_stages(data_stages.data_stages(config), num_steps, bar)
        else:
            stream = (autoencoder if task == "autoencoder" else data_stages).stream_config
            report = examine_data(data, stream(config), num_steps, bar)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_name(f"{args.out.name}.json").write_text(json.dumps(report, indent=1) + "\n")
        sections = stages_sections(report) if has_stages else report_sections(report)
        page = render_page("What the run would see", f"{data} with {args.config}", sections)
        args.out.with_name(f"{args.out.name}.html").write_text(page)
    return (_of_stages if has_stages else _of_one)(report) | (
        {"exit_code": EXIT_PROBLEMS} if report["problems"] else {}
    )


def _of_stages(report: dict[str, Any]) -> dict[str, Any]:
    """What is printed: without what is in the page alone."""
    stages = [
        {**stage, "data_sets": {path: without(run, "untrained") for path, run in stage["data_sets"].items()}}
        for stage in report["stages"]
    ]
    return {**without(report, "data_sets"), "stages": stages}


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _of_one(report: dict[str, Any]) -> dict[str, Any]:
    short = without(report, "untrained", "data", "records")
    untrained, unreadable = len(report["untrained"]), len(report["records"]["unreadable"])
    return {**short, "untrained": untrained, "unreadable": unreadable, "clips": report["data"]["clips"]}
