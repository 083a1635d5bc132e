"""`sora-jax evaluate --metric clip`: how well generated videos fit their prompts, by CLIPScore.

    sora-jax evaluate convert-weights --kind clip --weights FOLDER --out clip.safetensors
    sora-jax evaluate --metric clip --generated SAMPLES --weights clip.safetensors --out clip.json [--real CLIPS]

Beside the score: that of the same videos with each other's prompts, and with `--real` that of real clips with their
captions (docs/evaluation.md).
"""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from sora_jax.commands.shared import check_least, joined_hash, shown
from sora_jax.evaluation.clip_score import ClipNetwork, ClipProtocol, Fits, interval_of, score_videos
from sora_jax.evaluation.inputs import read_samples
from sora_jax.evaluation.media import MediaSet, open_media
from sora_jax.models.clip_files import KIND, load_clip

logger = logging.getLogger(__name__)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The score and what it says of itself. Raises UserError for options that are missing or do not fit."""
    for name, what in (("generated", "DIR, what `sora-jax sample --prompts` wrote, or --run RUN"), ("weights", "FILE")):
        if getattr(args, name) is None:
            raise UserError(f"--metric clip needs --{name} {what}")
    check_least(args, num_generated=1, bootstrap=0, batch=1, max_frames=0)
    if args.frames is not None:
        raise UserError(f"--frames is not for --metric clip: give --max_frames {args.frames}")
    real = None if args.real is None else _real_clips(args)  # looked at before anything takes long
    prompts = {entry["file"]: entry["prompt"] for entry in read_samples(args.generated)}
    network, protocol = ClipNetwork(load_clip(Path(args.weights))), ClipProtocol(args.max_frames)
    media = open_media(args.generated, args.split).at_most(args.num_generated)
    captions = [prompts[name] for name in media.names]
    found = _fits(network, media, captions, protocol, args)
    hashes = {"protocol": protocol.fingerprint, "network": network.fingerprint, "generated": media.fingerprint}
    warnings, beside = _warnings(found, "prompts", network.tokenize.context), {}
    if real is not None:
        fits = _fits(network, *real, protocol, args)
        beside = _describe(fits, "clip_real", args.bootstrap) | {"num_real": len(real[0])}
        hashes["real"] = real[0].fingerprint
        warnings += _warnings(fits, "real captions", network.tokenize.context)
    rows = zip(media.names, captions, found.own, strict=True)
    return {
        "generated": str(args.generated),
        "protocol": protocol.name,
        **_describe(found, "clip", args.bootstrap),
        **beside,
        "clip_exchanged": None if found.exchanged is None else float(found.exchanged.mean()),
        "num_generated": len(media),
        "num_frames": found.num_frames,
        "warnings": warnings,
        "weights": {"kind": KIND, "network": network.name, "fingerprint": network.fingerprint},
        "hash": joined_hash(hashes),
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


def _real_clips(args: argparse.Namespace) -> tuple[MediaSet, list[str]]:
    """Clips that have captions, and these. Raises UserError where there are none."""
    reader = ShardReader(args.real, "clip")
    media = open_media(args.real, args.split).at_most(args.num_real)
    records = (reader.read(int(name.rpartition("/")[2])) for name in media.names)
    captions = [record.captions[0].text if record.captions else "" for record in records]
    kept = [i for i, caption in enumerate(captions) if caption]
    if not kept:
        raise UserError(f"no {args.split} clip of {args.real} has a caption: leave out --real")
    return media.subset(kept), [captions[i] for i in kept]


def _warnings(found: Fits, what: str, context: int) -> list[str]:
    """Why the score may not be what its reader takes it for."""
    if not found.num_truncated:
        return []
    warning = (
        f"{found.num_truncated} of {len(found.own)} {what} have more than CLIP's {context} tokens: what follows them "
        "is not judged"
    )
    logger.warning("%s", warning)
    return [warning]
