"""`sora-jax evaluate --metric fid|fvd|synth-fd|synth-fvd`: how far generated videos or images are
from real ones, by a named protocol.

    sora-jax evaluate --metric fvd --real CLIPS --generated SAMPLES --protocol stylegan-v --weights i3d.safetensors \\
        --out fvd.json

`synth-fd` (of frames) and `synth-fvd` take the small networks that the package carries, and need no weights. Beside the
distance: its bootstrap interval, KID, precision and recall, density and coverage, for images the Inception score, and
hashes of all that the score depends on (docs/evaluation.md).
"""

import argparse
import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sora_jax.commands.shared import check_least, joined_hash, shown
from sora_jax.evaluation.feature_scores import inception_score, kernel_distance, manifolds
from sora_jax.evaluation.features import FeatureNetwork, FeatureSet, cached_features, extract
from sora_jax.evaluation.frechet import bootstrap, extrapolate, frechet_distance, gaussian
from sora_jax.evaluation.media import MediaSet, open_media
from sora_jax.evaluation.protocols import PROTOCOLS, Protocol, choose_protocol
from sora_jax.models.embedded import NETWORKS, load_embedded
from sora_jax.models.feature_files import load_weights

MOST_NEIGHBOURS = 10_000
"""At most so many samples of a side have their neighbours looked for."""
FEWEST_NEIGHBOURS = 7
PUBLISHED = ("fid", "fvd")
TAKERS = {"protocol": PUBLISHED, "weights": (*PUBLISHED, "clip")}
"""Which metrics take one each of an option's values."""
METRICS = (*PUBLISHED, "synth-fd", "synth-fvd")
OF_FRAMES = {"fvd", "synth-fd", "synth-fvd"}
"""Metrics that `--frames` is for."""

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the feature metrics."""
    names = ", ".join(name for name, protocol in PROTOCOLS.items() if protocol.metric in PUBLISHED)
    group = parser.add_argument_group("--metric fid, fvd, synth-fd and synth-fvd")
    group.add_argument("--protocol", metavar="NAME", help=f"how fid or fvd is meant: {names}; for both NAME,NAME")
    group.add_argument(
        "--weights",
        metavar="FILE.safetensors",
        help="its network (clip: too), by `evaluate convert-weights`; FILE,FILE",
    )
    group.add_argument("--frames", type=int, help="frames of a video, in place of the protocol's")
    group.add_argument("--num_generated", type=int, help="at most this many generated ones (default: the protocol's)")
    group.add_argument("--bootstrap", type=int, default=20, metavar="N", help="resamplings (default: %(default)s)")
    group.add_argument("--batch", type=int, default=16, help="videos read at a time; moves no score")
    group.add_argument("--cache", type=Path, metavar="DIR", help="where features of the real side are kept")


def split_published(args: argparse.Namespace, metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The protocol and the weights of each metric of a list that takes them, given in the order of these metrics.

    `--frames` is not `fid`'s or `clip`'s where another of them takes it. Raises UserError where their numbers differ.
    """
    found: dict[str, dict[str, Any]] = {metric: {} for metric in metrics}
    for metric in {"fid", "clip"}.intersection(metrics) if OF_FRAMES.intersection(metrics) else ():
        found[metric]["frames"] = None
    for name, takers in TAKERS.items():
        taking = [metric for metric in metrics if metric in takers]
        given = getattr(args, name).split(",") if getattr(args, name) else []
        if given and len(given) != len(taking):
            raise UserError(
                f"--{name} names {len(given)}, but {len(taking)} of --metric {','.join(metrics)} "
                f"({', '.join(taking) or 'none'}) take one each, in this order"
            )
        for metric, value in zip(taking, given, strict=False):
            found[metric][name] = value
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The score and what it says of itself. Raises UserError for options that are missing or do not fit."""
    protocol = _protocol(args)
    name = protocol.network.name
    network = FeatureNetwork(
        load_embedded(name) if name in NETWORKS else load_weights(Path(args.weights), name), protocol
    )
    real = open_media(args.real, args.split).at_most(args.num_real or protocol.num_real)
    generated = open_media(args.generated, args.split).at_most(args.num_generated or protocol.num_generated)

    def progress(what: str) -> Callable[[Iterable, int], Iterable]:
        return lambda items, total: shown(items, total, f"features of {what}")

    real_set = cached_features(network, real, args.cache, args.batch, progress("real clips"))
    generated_set = extract(network, generated, args.batch, progress("generated ones"))
    hashes = {
        "protocol": protocol.fingerprint,
        "network": network.fingerprint,
        "real": real.fingerprint,
        "generated": generated.fingerprint,
    }
    return (
        {"generated": str(args.generated), "protocol": protocol.name}
        | score(protocol, real_set, generated_set, args.bootstrap, network.kind)
        | {"weights": {"kind": network.kind, "fingerprint": network.fingerprint}}
        | {"hash": joined_hash(hashes), "hashes": hashes}
        | _describe(real, generated)
    )


def _protocol(args: argparse.Namespace) -> Protocol:
    of_published = (("protocol", "NAME"), ("weights", "FILE.safetensors")) if args.metric in PUBLISHED else ()
    for name, what in (*of_published, ("real", "DIR"), ("generated", "DIR")):
        if getattr(args, name) is None:
            raise UserError(f"--metric {args.metric} needs --{name} {what} (docs/evaluation.md lists the protocols)")
    check_least(args, frames=1, num_generated=2, bootstrap=0, batch=1)
    protocol = choose_protocol(args.protocol if args.metric in PUBLISHED else args.metric, args.metric)
    if args.frames is not None and args.metric == "fid":
        raise UserError("--frames is for --metric fvd: an image is one frame, and of a video the first is taken")
    return protocol if args.frames is None else protocol.with_frames(args.frames)


def score(
    protocol: Protocol, real: FeatureSet, generated: FeatureSet, num_resamples: int, weights_kind: str
) -> dict[str, Any]:
    """Every score of two sets of features, with what there is to say against it."""
    sides = [gaussian(side.features, protocol.ddof) for side in (real, generated)]
    distance = frechet_distance(*sides, protocol.root, protocol.root_offset)
    rows = real.rows_per_clip
    interval = bootstrap(real.features, generated.features, distance, protocol.ddof, num_resamples, rows=rows)
    found: dict[str, Any] = {
        protocol.metric: distance,
        "interval": dataclasses.asdict(interval) if interval else None,
        "num_real": sides[0].count,
        "num_generated": sides[1].count,
        "num_short": {"real": real.num_short, "generated": generated.num_short},
        "kid": dataclasses.asdict(kernel_distance(real.features, generated.features)),
    }
    if min(side.count for side in sides) >= FEWEST_NEIGHBOURS:
        found |= dataclasses.asdict(manifolds(_some(real.features), _some(generated.features)))
    if generated.logits.shape[1]:
        found["inception_score"] = dataclasses.asdict(inception_score(generated.logits))
    found["warnings"] = warnings_of(protocol, sides[0].count, sides[1].count, len(sides[0].mean), weights_kind)
    if min(side.count for side in sides) < protocol.published:
        endless = extrapolate(sides[0], generated.features, protocol.ddof)
        found["extrapolated"] = dataclasses.asdict(endless) if endless else None
    for warning in found["warnings"]:
        logger.warning("%s", warning)
    return found


def warnings_of(protocol: Protocol, num_real: int, num_generated: int, width: int, weights_kind: str) -> list[str]:
    """Why the score may not be what its reader takes it for."""
    found = []
    if min(num_real, num_generated) < protocol.published:
        found.append(
            f"{num_real} real and {num_generated} generated samples, papers take {protocol.published}: a "
            f"{protocol.metric.upper()} of fewer is larger by its bias; `extrapolated` is an estimate without the part "
            "that the generated ones cause"
        )
    if min(num_real, num_generated) <= width:
        found.append(
            f"a covariance of {width} features needs more than {width} samples to have full rank, there are "
            f"{num_real} and {num_generated}: compare only with scores of equally many"
        )
    if weights_kind not in protocol.network.weights:
        found.append(
            f"protocol {protocol.name} means weights of {' or '.join(protocol.network.weights)}, --weights is of "
            f"{weights_kind}: not comparable with published scores, unless both hold the same numbers"
        )
    return found


def _some(features: np.ndarray) -> np.ndarray:
    numbers = np.linspace(0, len(features) - 1, min(len(features), MOST_NEIGHBOURS)).round().astype(int)
    return features[numbers]


def _describe(real: MediaSet, generated: MediaSet) -> dict[str, Any]:
    return {"made_by": generated.made_alike, "offered": {"real": len(real), "generated": len(generated)}}
