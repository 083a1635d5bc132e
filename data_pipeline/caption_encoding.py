"""The captions of latents through a frozen text encoder that is passed in as a function (`caption_features.py`).

Texts are encoded once each, in the order in which the latents first have them, file by file, in a folder of their own
that becomes LATENTS/text_features when it is whole: a killed job goes on with the next file, and what a file holds does
not depend on where that was.
"""

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Shaped

from data_pipeline.caption_features import ENTRIES, FOLDER, MANIFEST, FeaturesManifest, file_name
from data_pipeline.errors import UserError
from data_pipeline.permutation import key_from
from data_pipeline.shards import READER_OPTIONS, WRITER_OPTIONS, ShardReader, on_disk, sync
from data_pipeline.stream import load_tokenizer
from data_pipeline.tokenizer import Tokenizer

TOKENS_PER_FILE = 1 << 20
"""About so many are in a file."""
STAGING, TEXTS = ".encoding_text", "texts.msgpack"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextEncoding:
    """The encoder as data sees it: ids of captions (each with its end of text) → features `[n, E]` of each in turn.
    `dtype` is the one that it runs in."""

    encode: Callable[[Sequence[list[int]]], Iterator[Shaped[np.ndarray, "_n E"]]]
    width: int
    fingerprint: str
    dtype: str = "bfloat16"
    max_tokens: int = 0
    """What captions are cut to; 0 leaves them whole."""


@dataclass(frozen=True)
class Storage:
    """What the features of a data set's captions take."""

    captions: int
    different: int
    longest_bytes: int
    total_bytes: int
    free_bytes: int


def encode_captions(
    latents: Path,
    encoding: TextEncoding,
    on_storage: Callable[[Storage], Any],
    on_progress: Callable[[str, int, int], Any],
) -> FeaturesManifest:
    """Encodes every caption of `latents`; `on_storage` is told first what that takes, `on_progress` what is done: its
    name, how much of it, and of how much.

    Captions of unreadable records are left out, as training leaves those records out. Raises UserError where other
    features are, for texts that the disk has no room for, and where two texts have one key.
    """
    reader = ShardReader(latents, kind="latent")
    wanted = {
        "text_encoder_fingerprint": encoding.fingerprint,
        "latents_fingerprint": reader.manifest.fingerprint,
        "width": encoding.width,
        "dtype": encoding.dtype,
        "max_tokens": encoding.max_tokens,
    }
    if (latents / FOLDER / MANIFEST).is_file():
        return _finished(latents, wanted)
    staging = latents / STAGING / hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()
    tokenizer, texts = load_tokenizer(latents, reader.manifest), _staged_texts(staging, reader, on_progress)
    lengths = [len(tokenizer.caption_ids(text, encoding.max_tokens)) for text in texts]
    num_tokens = sum(lengths)
    per_file = max(1, TOKENS_PER_FILE * len(texts) // num_tokens)
    manifest = FeaturesManifest(
        **wanted, num_entries=len(texts), num_tokens=num_tokens, entries_per_file=per_file, files={}
    )
    _check_room(manifest, max(lengths), reader.manifest.num_captions, staging, on_storage)
    for number, first in enumerate(range(0, len(texts), per_file)):
        part = texts[first : first + per_file]
        _encode_file(staging / file_name(number), part, tokenizer, encoding)
        on_progress("encoding captions", first + len(part), len(texts))
    return _publish(staging, latents / FOLDER, manifest, texts)


def _finished(latents: Path, wanted: dict[str, Any]) -> FeaturesManifest:
    manifest = FeaturesManifest.load(latents)
    for name, value in wanted.items():
        if getattr(manifest, name) != value:
            raise UserError(
                f"{latents / FOLDER} holds features of another {name.replace('_', ' ')}: "
                f"{str(getattr(manifest, name))[:12]} there, {str(value)[:12]} now; delete that folder to encode again"
            )
    return manifest


def _staged_texts(staging: Path, reader: ShardReader, on_progress: Callable[[str, int, int], Any]) -> list[str]:
    """Every text once; they are looked for at the first start only."""
    path = staging / TEXTS
    if not path.is_file():
        texts = _distinct_texts(reader, on_progress)
        with on_disk(f"writing {path}"):
            staging.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".tmp").write_bytes(msgpack.packb(texts))
            os.replace(path.with_suffix(".tmp"), path)
    return msgpack.unpackb(path.read_bytes())


def _distinct_texts(reader: ShardReader, on_progress: Callable[[str, int, int], Any]) -> list[str]:
    """In the order of the records, after the empty one. Raises UserError if two have one key."""
    by_key: dict[int, str] = {key_from(""): ""}
    for number in range(total := reader.num_records()):
        try:
            captions = reader.read(number).captions
        except UserError as error:
            logger.warning("its captions are left out: %s", error)
            continue
        for caption in captions:
            known = by_key.setdefault(key_from(caption.text), caption.text)
            if known != caption.text:
                raise UserError(
                    f"the captions {known[:80]!r} and {caption.text[:80]!r} have one key: reword one of them"
                )
        on_progress("reading captions", number + 1, total)
    return list(by_key.values())


def _check_room(
    manifest: FeaturesManifest, longest: int, captions: int, staging: Path, on_storage: Callable[[Storage], Any]
) -> None:
    """Tells what the features take. Raises UserError where the disk has less room than what is left to write."""
    there = sum(path.stat().st_size for path in staging.iterdir())
    free = shutil.disk_usage(staging).free + there
    size = Storage(captions, manifest.num_entries, longest * manifest.width * 2, manifest.num_bytes, free)
    on_storage(size)
    if size.total_bytes > size.free_bytes:
        raise UserError(
            f"the features of {size.different} captions take {size.total_bytes / 1e9:.1f} GB, but {staging.parents[1]} "
            f"has {size.free_bytes / 1e9:.1f} GB free: cut captions with --max_caption_tokens, or run the encoder in "
            "the step (leave out --text_encoder here, and config.data.text_features)"
        )


def _encode_file(path: Path, texts: Sequence[str], tokenizer: Tokenizer, encoding: TextEncoding) -> None:
    """One file of features, unless an earlier start has finished it."""
    if path.is_file() and ArrayRecordReader(str(path), READER_OPTIONS).num_records() == len(texts):
        return
    features = encoding.encode([tokenizer.caption_ids(text, encoding.max_tokens) for text in texts])
    temporary = path.with_suffix(".tmp")
    with on_disk(f"writing {path}"):
        writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
    for one in features:
        packed = np.asarray(one, ml_dtypes.bfloat16).tobytes()
        with on_disk(f"writing {path}"):
            writer.write(packed)
    with on_disk(f"writing {path}"):
        writer.close()
        sync(temporary)
        os.replace(temporary, path)


def _publish(staging: Path, folder: Path, manifest: FeaturesManifest, texts: Sequence[str]) -> FeaturesManifest:
    """Makes the staged files, of which the manifest is the last, the features of their latents: by one rename."""
    keys = np.asarray([key_from(text) for text in texts], np.uint64)
    order = np.argsort(keys)
    with on_disk(f"writing {folder}"):
        np.savez(staging / ENTRIES, keys=keys[order], entries=order.astype(np.int64))
        names = [file_name(number) for number in range(-(-len(texts) // manifest.entries_per_file))] + [ENTRIES]
        manifest = dataclasses.replace(manifest, files={name: (staging / name).stat().st_size for name in names})
        manifest.save(staging)
        for name in (ENTRIES, MANIFEST):
            sync(staging / name)
        (staging / TEXTS).unlink()
        os.rename(staging, folder)
        sync(folder.parent)
        shutil.rmtree(folder.parent / STAGING)
    return manifest
