"""Features of captions from a frozen text encoder, computed once (`caption_encoding.py`), beside their latents.

    LATENTS/text_features/features-00000.array_record …   one caption an entry: [n, E] little-endian bfloat16
    LATENTS/text_features/entries.npz                     which entry a caption's text has
    LATENTS/text_features/manifest.json                   what encoded which captions; written last

A text that several clips share has one entry; the empty caption, which captions are dropped for, has one too.
"""

import dataclasses
import functools
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Shaped

from data_pipeline.errors import UserError
from data_pipeline.permutation import key_from
from data_pipeline.shards import MAX_OPEN_SHARDS, READER_OPTIONS, Index, Manifest

FOLDER, ENTRIES, MANIFEST = "text_features", "entries.npz", "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class FeaturesManifest:
    """What a folder of features holds. `width` is E; `dtype` is what the encoder ran in (they are kept as bfloat16);
    `max_tokens` is what captions were cut to, 0 for whole ones; `latents_fingerprint` that of the data set whose
    captions these are."""

    text_encoder_fingerprint: str
    latents_fingerprint: str
    width: int
    dtype: str
    max_tokens: int
    num_entries: int
    num_tokens: int
    entries_per_file: int
    files: dict[str, int]
    """File name → bytes."""
    schema_version: int = SCHEMA

    @property
    def num_bytes(self) -> int:
        """Of the features: two for each value."""
        return self.num_tokens * self.width * 2

    def save(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n")

    @staticmethod
    def load(latents: Path) -> "FeaturesManifest":
        """Of the features beside `latents`. Raises UserError where there are none, or damaged ones."""
        path = latents / FOLDER / MANIFEST
        if not path.is_file():
            raise UserError(
                f"{latents} holds no text features ({path} is missing), but config.data.text_features asks for them: "
                f"run `sora-jax encode --text_encoder DIR --out {latents}`, or leave text_features out"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["schema_version"] != SCHEMA:
                raise UserError(
                    f"{path} has schema {values['schema_version']}, but {SCHEMA} is read here: encode again"
                )
            return FeaturesManifest(**values)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is damaged ({error!r}): delete {path.parent} and encode again") from error


class CaptionFeatures:
    """Reads the features beside the latents in `directory`.

    `max_tokens` is what training cuts captions to. Raises UserError on construction where there are no features, or
    those of other captions, of captions cut otherwise, or files that are not what their manifest says.
    """

    def __init__(self, directory: Path, latents: Manifest, index: Index, max_tokens: int):
        self.manifest, self._folder = FeaturesManifest.load(directory), directory / FOLDER
        found, expected = self.manifest.latents_fingerprint, latents.fingerprint
        if found != expected:
            raise UserError(
                f"{self._folder} holds features of the captions of data set {found[:12]}, but {directory} is "
                f"{expected[:12]}: delete that folder and encode again"
            )
        longest = int(index.caption_tokens.max(initial=1))
        made, wanted = (min(limit or longest, longest) for limit in (self.manifest.max_tokens, max_tokens))
        if made != wanted:
            raise UserError(
                f"training cuts captions to {wanted} tokens, but the features in {self._folder} are of captions of up "
                f"to {made}: set config.data.max_caption_tokens={made} (in all stages alike; row_text is a limit too), "
                f"or delete that folder and run `sora-jax encode` with --max_caption_tokens {max_tokens}"
            )
        for name, size in self.manifest.files.items():
            path = self._folder / name
            there = path.stat().st_size if path.is_file() else 0
            if there != size:
                raise UserError(f"{path} has {there} bytes, its manifest says {size}: copy it again, or encode again")
        self._keys, self._entries = _load_entries(self._folder / ENTRIES)
        self._reader = functools.lru_cache(MAX_OPEN_SHARDS)(self._open)

    def read(self, text: str) -> Shaped[np.ndarray, "_n E"]:
        """The features `[n, E]` of a caption ("" for the empty one), bfloat16, of its `n` tokens with the end of text.

        Raises UserError for a text that was not encoded, and for a damaged entry.
        """
        place = int(np.searchsorted(self._keys, key := np.uint64(key_from(text))))
        if place == len(self._keys) or self._keys[place] != key:
            raise UserError(f"{self._folder} has no features of the caption {text[:80]!r}: delete it and encode again")
        file, position = divmod(int(self._entries[place]), self.manifest.entries_per_file)
        try:
            packed = self._reader(file).read([position])[0]
        except (RuntimeError, IndexError, ValueError, OSError) as error:
            raise UserError(f"{self._folder}: the features of {text[:80]!r} are unreadable ({error})") from error
        return np.frombuffer(packed, ml_dtypes.bfloat16).reshape(-1, self.manifest.width)

    def _open(self, file: int) -> ArrayRecordReader:
        return ArrayRecordReader(str(self._folder / file_name(file)), READER_OPTIONS)


def file_name(number: int) -> str:
    """Of the file that holds the entries from `number * entries_per_file` on."""
    return f"features-{number:05d}.array_record"


def _load_entries(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["keys"], arrays["entries"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is missing or damaged ({error}): delete {path.parent} and encode again") from error
