"""`sora-jax bench crops`: an autoencoder's mixed shapes, a program for each, against one padded to the largest.

    sora-jax bench crops --config configs/autoencoder_quickstart.py

The training step of every crop of the config is compiled and timed on noise, and so is that of a shape that holds them
all, whose masked loss is taken to cost nothing. Counted are the pixels that teach, in the config's mixture of steps.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.train import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench crops`."""
    parser.add_argument("--config", required=True, metavar="FILE.py", help="an autoencoder's run")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, of which the best counts")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Pixels a second, seconds of compilation and bytes of each way, and of every shape."""
    if min(args.steps, args.rounds) < 1:
        raise UserError(f"--steps is {args.steps} and --rounds {args.rounds}, but both must be at least 1")
    config = load_config(args.config, args.overrides).to_dict()
    if config["train"]["task"] != "autoencoder":
        raise UserError(f"{args.config} trains the {config['train']['task']} task; give an autoencoder's config")

    from sora_jax.evaluation.step_speed import describe_devices
    from sora_jax.objectives.autoencoder import stream_config

    stream = stream_config(config)
    cycle = stream.cycle()
    shapes = {crop: sum(stream.crops[i] == crop for i in cycle) / len(cycle) for crop in stream.shapes}
    if len(shapes) < 2:
        raise UserError(f"{args.config} has only one crop, {stream.crops[0]}; there is nothing to mix")
    largest = tuple(map(max, zip(*shapes, strict=True)))
    measured = {crop: _measure(config, crop, args) for crop in dict.fromkeys([*shapes, largest])}
    rows = [{"crop": list(crop), "share": share, **measured[crop]} for crop, share in shapes.items()]
    pixels = sum(share * _pixels(config, crop) for crop, share in shapes.items())
    buckets_s = sum(share * measured[crop]["step_s"] for crop, share in shapes.items())
    own = [measured[crop] for crop in shapes]
    return {
        **describe_devices(),
        "shapes": rows,
        "buckets": {
            "pixels_per_s": pixels / buckets_s,
            "compile_s": sum(m["compile_s"] for m in own),
            "temporaries_mib": max(m["temporaries_mib"] for m in own),
        },
        "padded": {
            "crop": list(largest),
            "pixels_per_s": pixels / measured[largest]["step_s"],
            "share_of_pixels_that_teach": pixels / _pixels(config, largest),
            "compile_s": measured[largest]["compile_s"],
            "temporaries_mib": measured[largest]["temporaries_mib"],
        },
    }


def _pixels(config: Mapping[str, Any], crop: tuple[int, ...]) -> int:
    frames, height, width = crop
    return config["train"]["batch_rows"] * frames * height * width


def _measure(config: Mapping[str, Any], crop: tuple[int, ...], args: argparse.Namespace) -> dict[str, float]:
    import numpy as np

    from sora_jax.config import TrainConfig, build_config
    from sora_jax.evaluation.step_speed import measure_train_step
    from sora_jax.objectives.autoencoder import without_data

    task, train = without_data(config), build_config(TrainConfig, config["train"], "config.train")
    noise = np.random.default_rng(0).integers(0, 256, (train.batch_rows, *crop, 3), np.uint8)
    found = measure_train_step(task, train, {"video": noise}, args.steps, args.rounds)
    return {
        "compile_s": found["compile_s"],
        "step_s": found["step_s"],
        "temporaries_mib": found["bytes_per_device"]["temporaries"] / 2**20,
        "pixels_per_s": _pixels(config, crop) / found["step_s"],
    }
