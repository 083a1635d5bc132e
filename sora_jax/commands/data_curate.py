"""curate a folder, a metadata file or WebDataset shards into clip data sets of several sizes

    sora-jax data curate --config configs/curation_default.py --inputs FOLDER --out DIR
    sora-jax data curate --config configs/curation_default.py --inputs s3://bucket/raw --out DIR \\
        --engine ray --address auto --staging s3://bucket/staging

The same command again continues a run that was killed; the bytes are the same with any engine and number of workers.
"""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.curation.config import CurationConfig
from data_pipeline.curation.curate import curate
from data_pipeline.engines import Engine, LocalEngine, RayEngine
from sora_jax.commands.shared import add_workers, progress
from sora_jax.commands.train import load_config
from sora_jax.config import build_config

ENGINES = ("local", "ray")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax data curate`."""
    parser.add_argument("--config", required=True, metavar="FILE.py", help="its get_config() describes the stages")
    parser.add_argument("--inputs", required=True, help="folder, .csv/.jsonl/.parquet, .tar, video; a path or a URL")
    parser.add_argument(
        "--captions", type=Path, help="captions of a folder or a tar (default: captions.* or metadata.* in a folder)"
    )
    parser.add_argument("--out", required=True, help="folder of the data sets; a path or a URL")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="processes here, or a Ray cluster")
    parser.add_argument(
        "--address", default="", help="Ray's, as ray.init takes it (default: a cluster on this machine)"
    )
    parser.add_argument(
        "--staging", default="", help="folder that all workers see, kept (default: OUT/.staging, deleted)"
    )
    add_workers(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Curates, and returns where the data sets are and what the stages dropped."""
    config = build_config(CurationConfig, load_config(args.config, args.overrides, {}).to_dict(), "config")
    engine: Engine = RayEngine(args.address) if args.engine == "ray" else LocalEngine(args.workers)
    with progress("curating") as report:
        found = curate(
            args.inputs,
            args.out,
            config,
            engine,
            args.captions,
            args.staging,
            lambda _, done, total: report(done, total),
        )
    return {"out": args.out, **found}
