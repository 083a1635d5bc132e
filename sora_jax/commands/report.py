"""`sora-jax report`: one self-contained HTML page of a run, its samples and its scores, or of several runs compared.

    sora-jax report --run RUN [--samples SAMPLES] [--autoencoder RUN] [--evaluation evaluation.json] --out index.html
    sora-jax report --run SMALL MID LARGE [--samples S M L] [--scores s.json m.json l.json] --out compare.html

Several runs' `--samples` are what `sora-jax sample --prompts FILE --seed S` wrote for each: the same draws are shown
side by side, by the compute that each run took.
"""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error
from sora_jax.evaluation.report import ReportInputs, render_report
from sora_jax.evaluation.report_compare import CompareInputs, render_comparison

OF_ONE = ("autoencoder", "evaluation", "commands")
"""Options of a page of one run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax report`."""
    several = {"type": Path, "nargs": "+", "default": []}
    parser.add_argument("--run", required=True, metavar="RUN", **several, help="the run, or several to compare")
    parser.add_argument("--samples", metavar="DIR", **several, help="what `sora-jax sample` wrote, one a run")
    parser.add_argument("--autoencoder", type=Path, metavar="RUN", help="the autoencoder's run, for its curves")
    parser.add_argument("--evaluation", type=Path, metavar="FILE.json", help="what `sora-jax evaluate` wrote")
    parser.add_argument("--scores", metavar="FILE.json", **several, help="scores that `evaluate` wrote, one a run")
    parser.add_argument("--commands", type=Path, metavar="FILE.txt", help="the commands to show under 'Make it again'")
    parser.add_argument(
        "--data", metavar="DIR", **several, help="data to show the funnel of (default: what the config names, if there)"
    )
    parser.add_argument("--title")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the page and returns its path and size."""
    page = _comparison(args) if len(args.run) > 1 else _single(args)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, f"writing {args.out}") from error
    return {"out": str(args.out), "size_bytes": args.out.stat().st_size, "runs": len(args.run)}


def _single(args: argparse.Namespace) -> str:
    for name in ("samples", "scores"):
        if len(getattr(args, name)) > 1:
            raise UserError(f"--run names 1 run and --{name} {len(getattr(args, name))}: give one for each run")
    samples, scores = (next(iter(given), None) for given in (args.samples, args.scores))
    title = args.title or ReportInputs.title
    return render_report(
        ReportInputs(
            args.run[0], samples, args.autoencoder, args.evaluation, args.commands, scores, tuple(args.data), title
        )
    )


def _comparison(args: argparse.Namespace) -> str:
    given = [f"--{name}" for name in OF_ONE if getattr(args, name)]
    if given:
        raise UserError(
            f"--run names {len(args.run)} runs, and {', '.join(given)} belongs to a page of 1: leave it out"
        )
    title = args.title or CompareInputs.title
    return render_comparison(
        CompareInputs(tuple(args.run), tuple(args.samples), tuple(args.scores), tuple(args.data), title)
    )
