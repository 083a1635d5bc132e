"""`sora-jax evaluate train-embedded`: the networks of `synth-fd` and `synth-fvd`, trained anew on rendered clips.

    sora-jax evaluate train-embedded --out sora_jax/models/embedded.safetensors

The package carries the file that this wrote: scores are comparable as long as nobody writes another.
"""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.evaluation.embedded_training import Training, render_clips, train_embedded
from sora_jax.models.embedded import NETWORKS, save_embedded
from sora_jax.models.feature_files import fingerprint_of

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax evaluate train-embedded`."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")
    for field in dataclasses.fields(Training):
        what = field.name.replace("_", " ")
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help=what)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains and writes both. Raises UserError for numbers that give nothing to train or to measure on."""
    training = Training(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Training)})
    if min(training.num_heldout, training.num_steps, training.batch) < 1 or training.num_clips < 2:
        raise UserError(f"nothing can be trained with {training}: all numbers must be at least 1, clips at least 2")
    clips, found = render_clips(training.seed, training.num_clips + training.num_heldout)
    networks, result = {}, {}
    for name in NETWORKS:

        def told(step: int, loss: float, name: str = name) -> None:
            logger.info("%s, step %d of %d: loss %.4f", name, step, training.num_steps, loss)

        networks[name], accuracy = train_embedded(name, training, clips, found, told)
        result[name] = {"fingerprint": fingerprint_of(networks[name]), "accuracy": accuracy}
    save_embedded(networks, {"training": dataclasses.asdict(training)} | result, args.out)
    return {"out": str(args.out), "size_bytes": args.out.stat().st_size} | result
