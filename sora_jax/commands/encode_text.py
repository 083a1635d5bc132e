"""`sora-jax encode --text_encoder DIR`: the captions' features beside the latents, so that no step computes them."""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.filesize import decimal
from rich.progress import Progress

from data_pipeline.caption_encoding import Storage, TextEncoding, encode_captions
from data_pipeline.errors import UserError
from data_pipeline.shards import Manifest, ShardReader
from data_pipeline.stream import load_tokenizer
from sora_jax.models.caption_encoder import caption_encoder
from sora_jax.models.layers import DTYPES
from sora_jax.models.t5_files import TextEncoderSource, read_t5_config
from sora_jax.objectives.frozen_text import check_tokenizer, load_text_encoder

logger = logging.getLogger(__name__)


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text_encoder", type=Path, help="folder of a frozen T5 or umT5: caches the captions' features"
    )
    parser.add_argument("--text_dtype", choices=tuple(DTYPES), default="bfloat16", help="what the text encoder runs in")
    parser.add_argument(
        "--max_caption_tokens", type=int, default=0, help="cut captions to so many tokens, as training will (0: never)"
    )


def text_source(args: argparse.Namespace, records: ShardReader) -> TextEncoderSource | None:
    """The encoder that is asked for, after a word on what its features of the captions in `records` will take at most.

    Raises UserError, before any clip is encoded, for a folder without an encoder, or with another tokenizer's.
    """
    if args.max_caption_tokens < 0:
        raise UserError(f"--max_caption_tokens is {args.max_caption_tokens}, but must be 0 (never cut) or more")
    if args.text_encoder is None:
        return None
    source = TextEncoderSource(str(args.text_encoder), args.text_dtype)
    check_tokenizer(source, load_tokenizer(records.directory, records.manifest), records.directory)
    width, tokens = read_t5_config(args.text_encoder).width, records.index.caption_tokens.astype(np.int64)
    if args.max_caption_tokens:
        tokens = np.minimum(tokens, args.max_caption_tokens)
    logger.info(
        "text features will take %s at most: %d captions of %d tokens, %d values of 2 bytes each; equal captions are "
        "kept once", decimal(int(tokens.sum()) * width * 2), len(tokens), tokens.sum(), width,
    )  # fmt: skip
    return source


def encode_text(latents: Path, source: TextEncoderSource, max_tokens: int, mesh: Mesh | None) -> dict[str, Any]:
    """Encodes the captions of `latents`; returns what there is now. Shows progress."""
    weights = load_text_encoder(source, load_tokenizer(latents, Manifest.load(latents)), latents)
    encoding = TextEncoding(
        caption_encoder(weights, mesh), weights.config.width, weights.fingerprint, source.dtype, max_tokens
    )
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("captions", total=None)

        def on_storage(size: Storage) -> None:
            logger.info(
                "text features: %d different captions of %d take %s, the longest %s; %s are free",
                size.different, size.captions,
                *map(decimal, (size.total_bytes, size.longest_bytes, size.free_bytes)),
            )  # fmt: skip

        def on_progress(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        made = encode_captions(latents, encoding, on_storage, on_progress)
    return {
        "text_entries": made.num_entries,
        "text_tokens": made.num_tokens,
        "text_bytes": made.num_bytes,
        "text_encoder_fingerprint": made.text_encoder_fingerprint,
    }
