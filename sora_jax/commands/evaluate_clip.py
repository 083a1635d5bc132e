"""`sora-jax evaluate --metric clip`: how well generated videos fit their prompts, by CLIPScore.

    sora-jax evaluate convert-weights --kind clip --weights FOLDER --out clip.safetensors
    sora-jax evaluate --metric clip --generated SAMPLES --weights clip.safetensors --out clip.json [--real CLIPS]

Beside the score: that of the same videos with each other's prompts, and with `--real` that of real clips with their
captions (docs/evaluation.md).
"""

import argparse
import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.shared import shown
from sora_jax.evaluation.clip_score import ClipNetwork, ClipProtocol, Fits, interval_of, score_videos
from sora_jax.evaluation.inputs import read_real, read_samples
from sora_jax.evaluation.media import MediaSet, open_media
from sora_jax.models.clip_files import KIND, load_clip

logger = logging.getLogger(__name__)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The score and what it says of itself. Raises UserError for options that are missing or do not fit."""
    for name, what in (("generated", "DIR, what `sora-jax sample --prompts` wrote, or --run RUN"), ("weights", "FILE")):
        if getattr(args, name) is None:
            raise UserError(f"--metric clip needs --{name} {what}")
    for name, least in (("num_generated", 1), ("bootstrap", 0), ("batch", 1), ("max_frames", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}, but must be at least {least}")
    prompts = {entry["file"]: entry["prompt"] for entry in read_samples(args.generated)}
    network, protocol = ClipNetwork(load_clip(Path(args.weights))), ClipProtocol(args.max_frames)
    media = open_media(args.generated, args.split).at_most(args.num_generated)
    captions = [prompts[name] for name in media.names]
    found = _fits(network, media, captions, protocol, args)
    hashes = {"protocol": protocol.fingerprint, "network": network.fingerprint, "generated": media.fingerprint}
    rows = zip(media.names, captions, found.own, strict=True)
    return {
        "generated": str(args.generated),
        "protocol": protocol.name,
        **_describe(found, "clip", args.bootstrap),
        **(_real(network, protocol, args) if args.real is not None else {}),
        "clip_exchanged": None if found.exchanged is None else float(found.exchanged.mean()),
        "num_generated": len(media),
        "num_frames": found.num_frames,
        "warnings": _warnings(found, network.tokenize.context),
        "weights": {"kind": KIND, "network": network.name, "fingerprint": network.fingerprint},
        "hash": hashlib.sha256(" ".join(hashes.values()).encode()).hexdigest(),
        "hashes": hashes,
        "made_by": media.made_alike,
        "samples": [{"file": name, "prompt": caption, "clip": float(score)} for name, caption, score in rows],
    }


def _fits(
    network: ClipNetwork, media: MediaSet, captions: list[str], protocol: ClipProtocol, args: argparse.Namespace
) -> Fits:
    def show(items: Any, total: int) -> Any:
        return shown(items, total, f"CLIP of {media.source}")

    return score_videos(network, media, captions, protocol, args.batch, show)


def _describe(found: Fits, name: str, num_resamples: int) -> dict[str, Any]:
    interval = interval_of(found.own, num_resamples)
    key = "interval" if name == "clip" else f"{name}_interval"
    return {name: float(found.own.mean()), key: dataclasses.asdict(interval) if interval else None}


def _real(network: ClipNetwork, protocol: ClipProtocol, args: argparse.Namespace) -> dict[str, Any]:
    """The score of real clips that have captions."""
    clips = [pair for pair in read_real(args.real, args.split, args.num_real, args.max_frames) if pair[0]]
    if not clips:
        raise UserError(f"no {args.split} clip of {args.real} has a caption: leave out --real")
    names = tuple(str(i) for i in range(len(clips)))
    media = MediaSet(str(args.real), names, names, lambda i, most: clips[i][1][:most], {})
    found = _fits(network, media, [caption for caption, _ in clips], protocol, args)
    return _describe(found, "clip_real", args.bootstrap) | {"num_real": len(clips)}


def _warnings(found: Fits, context: int) -> list[str]:
    """Why the score may not be what its reader takes it for."""
    if not found.num_truncated:
        return []
    warning = (
        f"{found.num_truncated} of {len(found.own)} prompts have more than CLIP's {context} tokens: what follows them "
        "is not judged"
    )
    logger.warning("%s", warning)
    return [warning]
