"""`sora-jax evaluate --metric dimensions`: flicker, smoothness, motion, sharpness and consistency of videos.

    sora-jax evaluate --metric dimensions --generated SAMPLES [--real CLIPS] --out dimensions.json

After VBench's dimensions, without its networks (docs/evaluation.md says what each is). For VBench itself, sample with
`--names vbench` and let its own tool read the folder.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.shared import shown
from sora_jax.evaluation.dimensions import PER_VIDEO, dimensions, mean_of
from sora_jax.evaluation.features import FeatureNetwork
from sora_jax.evaluation.media import MediaSet, open_media
from sora_jax.evaluation.protocols import PROTOCOLS
from sora_jax.models.embedded import load_embedded
from sora_jax.models.feature_files import load_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of this metric."""
    parser.add_argument(
        "--subject_network", type=Path, metavar="FILE", help="dimensions: Inception's weights (default: the embedded)"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Means over the generated videos and, where they are given, over real ones."""
    if args.generated is None:
        raise UserError("--metric dimensions needs --generated DIR, a folder of videos, or --run RUN")
    if args.subject_network is None:
        weights, protocol = load_embedded("synth-image"), PROTOCOLS["synth-fd"]
    else:
        weights, protocol = load_weights(args.subject_network, "inception"), PROTOCOLS["clean-fid"]
    network = FeatureNetwork(weights, dataclasses.replace(protocol, num_frames=1))
    sides = {"generated": open_media(args.generated, args.split).at_most(args.num_generated)}
    if args.real is not None:
        sides["real"] = open_media(args.real, args.split).at_most(args.num_real)
    scores = {side: _means(network, media, args) for side, media in sides.items()}
    about = {"kind": weights.kind, "network": weights.network, "fingerprint": weights.fingerprint}
    return {"generated": str(args.generated), "scores": scores, "subject_network": about}


def _means(network: FeatureNetwork, media: MediaSet, args: argparse.Namespace) -> dict[str, Any]:
    numbers = shown(range(len(media)), len(media), f"measuring {media.source}")
    rows = [dimensions(media.read(i, args.max_frames or None), network) for i in numbers]
    kept = {name: [row[name] for row in rows if name in row] for name in PER_VIDEO}
    return {name: dataclasses.asdict(mean_of(values)) for name, values in kept.items() if values}
