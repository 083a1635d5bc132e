"""`sora-jax evaluate convert-weights`: a published feature network as one safetensors file with a fingerprint.

    sora-jax evaluate convert-weights --kind pytorch-fid --weights pt_inception-2015-12-05-6726825d.pth \\
        --out inception.safetensors

Nothing is fetched, and nothing in the file is run (docs/evaluation.md).
"""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.models.clip_files import KIND as CLIP
from sora_jax.models.clip_files import read_published_clip, save_clip
from sora_jax.models.clip_tokenizer import ClipTokenizer
from sora_jax.models.feature_files import KINDS, read_published, save_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax evaluate convert-weights`."""
    parser.add_argument("--kind", required=True, choices=sorted([*KINDS, CLIP]), help="which published file it is")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="the published file, or folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Reads, checks and writes. Raises UserError for a file that is missing, or not of its kind."""
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out is {args.out}, but must end in .safetensors")
    if args.kind == CLIP:
        weights, network = read_published_clip(args.weights), CLIP
        ClipTokenizer(weights.tokenizer, weights.config)  # whether it is one
        save_clip(weights, args.out)
    else:
        weights = read_published(args.weights, args.kind)
        network = weights.network
        save_weights(weights, args.out)
    return {
        "out": str(args.out),
        "kind": args.kind,
        "network": network,
        "parameters": sum(tensor.size for tensor in weights.tensors.values()),
        "fingerprint": weights.fingerprint,
    }
