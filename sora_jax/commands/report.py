"""`sora-jax report`: one self-contained HTML page of a run, its samples and its scores.

sora-jax report --run RUN --samples SAMPLES [--autoencoder RUN] [--evaluation evaluation.json] --out index.html
"""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.errors import from_os_error
from sora_jax.evaluation.report import ReportInputs, render_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax report`."""
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="the diffusion run")
    parser.add_argument("--samples", type=Path, required=True, metavar="DIR", help="what `sora-jax sample` wrote")
    parser.add_argument("--autoencoder", type=Path, metavar="RUN", help="the autoencoder's run, for its curves")
    parser.add_argument("--evaluation", type=Path, metavar="FILE.json", help="what `sora-jax evaluate` wrote")
    parser.add_argument("--scores", type=Path, metavar="FILE.json", help="distances that `sora-jax evaluate` wrote")
    parser.add_argument("--commands", type=Path, metavar="FILE.txt", help="the commands to show under 'Make it again'")
    parser.add_argument("--title", default=ReportInputs.title)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the page and returns its path and size."""
    inputs = ReportInputs(
        args.run, args.samples, args.autoencoder, args.evaluation, args.commands, args.scores, args.title
    )
    page = render_report(inputs)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, f"writing {args.out}") from error
    return {"out": str(args.out), "size_bytes": args.out.stat().st_size}
