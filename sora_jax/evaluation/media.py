"""Sets of videos and images to be scored: a folder, clip shards, or what `sora-jax sample` wrote.

A set is a fixed list of clips with a hash over their bytes, so that a score can say what it is a score of.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.shards import Manifest, ShardReader
from data_pipeline.video_io import Frames, decode, decode_record
from data_pipeline.walk import find_inputs
from sora_jax.evaluation.inputs import SAMPLES, clip_numbers, read_samples
from sora_jax.generation.manifest import file_digest


@dataclass(frozen=True)
class MediaSet:
    """`read(i, most)` gives the first `most` frames of clip `i` (all of them for None).

    `source` is what `--real` or `--generated` named, `made_by` what its manifest says of how it was made.
    """

    source: str
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    read: Callable[[int, int | None], Frames]
    made_by: dict[str, object]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Over every clip's bytes, in their order, and what the manifest says."""
        plain = {"clips": self.hashes, "made_by": self.made_by}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def made_alike(self) -> dict[str, object]:
        """What the manifest says the same of all samples."""
        entries = self.made_by.get("samples", [])
        return {n: v for n, v in (entries[0] if entries else {}).items() if all(e.get(n) == v for e in entries)}

    def subset(self, numbers: Sequence[int]) -> "MediaSet":
        """The clips of these numbers."""
        numbers = [int(number) for number in numbers]
        names, hashes = (tuple(column[i] for i in numbers) for column in (self.names, self.hashes))
        return MediaSet(self.source, names, hashes, lambda i, most: self.read(numbers[i], most), self.made_by)

    def at_most(self, most: int | None) -> "MediaSet":
        """Evenly spread over the set, no more than `most`."""
        if most is None or len(self) <= most:
            return self
        return self.subset(np.linspace(0, len(self) - 1, most).round().astype(int).tolist())


def open_media(directory: Path, split: str) -> MediaSet:
    """The set at `directory`: shards (their `split`), samples with their manifest, or any folder of videos and images.

    Raises UserError for a folder that is not there, or holds nothing of these.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder: name clip shards, samples, or a folder of videos and images")
    if (directory / "manifest.json").is_file() and (directory / "index.npz").is_file():
        return _shards(directory, split)
    if (directory / SAMPLES).is_file():
        entries = read_samples(directory)
        made_by = {"samples": [{n: v for n, v in entry.items() if n != "path"} for entry in entries]}
        return _files(directory, [entry["file"] for entry in entries], made_by)
    return _files(directory, find_inputs(directory, directory / ".writing"), {})


def _shards(directory: Path, split: str) -> MediaSet:
    reader, manifest = ShardReader(directory, "clip"), Manifest.load(directory)
    numbers = clip_numbers(reader, split)
    shards = {(s.split, s.file): s.sha256 for s in manifest.shards}
    digest = hashlib.sha256(json.dumps(sorted((*key, sha) for key, sha in shards.items())).encode()).hexdigest()

    lock = threading.Lock()  # a reader opens and closes shards as it goes; decoding is what takes the time

    def read(i: int, most: int | None) -> Frames:
        with lock:
            record = reader.read(int(numbers[i]))
        return decode_record(record, most)[0]

    names = tuple(f"{split}/{number}" for number in numbers)
    return MediaSet(str(directory), names, tuple(f"{digest[:16]}:{name}" for name in names), read, {})


def _files(directory: Path, names: Sequence[str], made_by: dict[str, object]) -> MediaSet:
    def read(i: int, most: int | None) -> Frames:
        return decode(directory / names[i], most)[0]

    return MediaSet(str(directory), tuple(names), tuple(file_digest(directory / name) for name in names), read, made_by)
