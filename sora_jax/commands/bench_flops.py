"""`sora-jax bench flops`: parameters and FLOPs of every named DiT size on 256x256 images, beside the DiT paper's.

The paper's models (Peebles & Xie 2023, tables 1 and 4) are conditioned on a class: no text encoder, no
cross-attention, and their Gflops are multiply-adds. `core` is the part of ours that corresponds to theirs.
"""

import argparse
from typing import Any

import jax

from sora_jax.models.dit import SIZES, Dit, DitConfig, forward_flops
from sora_jax.models.layers import initialise
from sora_jax.models.text_encoder import TextEncoderConfig

PAPER = {"S": (33, 6.06), "B": (130, 23.01), "L": (458, 80.71), "XL": (675, 118.64)}
"""Millions of parameters and billions of multiply-adds of DiT-S/2 to DiT-XL/2."""
IMAGE_TOKENS, PATCH_VALUES = 256, 16  # 256x256 pixels, 8x8 compression, 4 channels, patches of 2x2
TEXT_PARTS = ("cross_attention", "text_encoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text_tokens", type=int, default=32, help="caption length that is counted")
    parser.add_argument("--vocab_size", type=int, default=8192, help="of the text encoder's embedding")


def run(args: argparse.Namespace) -> dict[str, Any]:
    rows = {name: describe(name, args.text_tokens, args.vocab_size) for name in SIZES}
    return {"convention": "one multiply-add is two FLOPs, forward, per 256x256 image", "sizes": rows}


def describe(name: str, text_tokens: int, vocab_size: int) -> dict[str, float]:
    """Counts of one size; nothing is allocated."""
    cfg = DitConfig(patch_values=PATCH_VALUES, text=TextEncoderConfig(vocab_size), **SIZES[name])
    shapes = jax.eval_shape(lambda: initialise(lambda rngs: Dit(cfg, rngs), jax.random.key(0)))
    outside = (shapes["text_encoder"], shapes["blocks"]["cross"], shapes["blocks"]["norm_cross"], shapes["pooled_in"])
    parts = forward_flops(cfg, [IMAGE_TOKENS], [text_tokens])
    core = sum(value for part, value in parts.items() if part not in TEXT_PARTS)
    counts = {
        "parameters_m": count(shapes) / 1e6,
        "core_parameters_m": (count(shapes) - count(outside)) / 1e6,
        "gflops": sum(parts.values()) / 1e9,
        "core_gflops": core / 1e9,
        "core_multiply_adds_g": core / 2e9,
    }
    if name in PAPER:
        counts |= {"paper_parameters_m": PAPER[name][0], "paper_multiply_adds_g": PAPER[name][1]}
    return {key: round(value, 2) for key, value in counts.items()}


def count(tree: Any) -> int:
    """Values in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
