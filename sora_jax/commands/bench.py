"""`sora-jax bench`: train and sample measure the model, attention its kernel, autoencoder and crops the autoencoder,
packing, loader and order the data path, loop the loop.

storm counts what a run survives, flops counts models, checkpoint measures saves and restarts, damage what `checkpoint
verify` finds.
"""

import argparse
import importlib
from typing import Any

from sora_jax.training.compile_cache import use_compile_cache

BENCHES = {
    "train": "a training step of a config on random rows: tokens/s, MFU, bytes, and PyTorch beside it",
    "sample": "sampling with a config or a run: seconds a sample and a solver step, tokens/s, compilation",
    "solvers": "how near each solver comes to 1000 Euler steps, by network calls, with a trained run",
    "attention": "attention within 1, 4 and 16 segments of a row: whether its time follows the sum of squares",
    "autoencoder": "frames a second of encoding and decoding, and of the same network in PyTorch",
    "features": "samples a second through the networks of FID and FVD, and through the same in PyTorch",
    "crops": "an autoencoder's mixed shapes: a program for each, against one padded to the largest",
    "packing": "how full and how balanced the packing plan's rows are, on real or synthetic lengths",
    "loader": "tokens or frames a second from one data set through the stream",
    "order": "the same sample ids on 1, 2 and 4 hosts, with 0, 1 and 4 workers, after restarts, in every stage",
    "curation": "precision and recall of cuts, borders, limits and duplicates on variants of real clips",
    "decode": "decoded frames a second of clip shards, beside FFmpeg's own program",
    "loop": "the training loop's time over the bare jitted step's",
    "storm": "one short run, killed hundreds of times: what is lost, and whether it ends the same",
    "checkpoint": "what saves, restores and restarts cost a run",
    "damage": "how much damage to a checkpoint's files is found",
    "flops": "parameters and FLOPs of the named model sizes, beside the DiT paper's",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(dest="bench", required=True, metavar="|".join(BENCHES))
    for name, summary in BENCHES.items():
        module = importlib.import_module(f"sora_jax.commands.bench_{name}")
        subparser = benches.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(bench_run=module.run)


def run(args: argparse.Namespace) -> dict[str, Any]:
    use_compile_cache()
    return args.bench_run(args)
