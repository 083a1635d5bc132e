"""Shard directories: ArrayRecord files, a manifest that commits them, and an index that planning reads.

    DIR/train-00000-of-00003.array_record …   one msgpack record an entry, group_size:1 (random access)
    DIR/index.npz                             sizes and caption lengths of every record, no pickle
    DIR/tokenizer.model                       the sentencepiece model that counted the caption tokens
    DIR/manifest.json                         written last: without it the directory is not a data set

Files are written under `DIR/.writing` and renamed; the same records in the same order give the same bytes.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float32, Int32, Int64, UInt8

from data_pipeline.errors import UserError, from_os_error
from data_pipeline.records import SCHEMA_VERSION, SPLITS, Record, pack_record, unpack_record
from data_pipeline.tokenizer import Tokenizer

KINDS = ("clip", "latent")
# Videos are compressed already and bf16 latents hardly compress; uncompressed entries read back fastest.
WRITER_OPTIONS = "group_size:1,uncompressed"
# Records are read at random, so reading ahead only wastes bandwidth.
READER_OPTIONS = "readahead_buffer_size:0"
MAX_OPEN_SHARDS = 64  # an open file and its index each; the least recently read is closed first
_LATENT_METADATA = ("autoencoder_fingerprint", "data_fingerprint", "latent_mean", "latent_std", "channels")


@dataclass(frozen=True)
class Shard:
    file: str
    split: str
    num_records: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a shard directory holds. `shapes` counts records by "frames x height x width" (latent units for latents);
    `metadata` is the writer's: for latents the autoencoder's fingerprint, channel statistics and source data."""

    kind: str
    schema_version: int
    counts: dict[str, int]
    shards: tuple[Shard, ...]
    shapes: dict[str, int]
    durations_s: dict[str, float]
    num_captions: int
    fingerprint: str
    tokenizer_fingerprint: str | None
    metadata: dict[str, Any]

    @staticmethod
    def load(directory: Path | str) -> "Manifest":
        """Reads DIR/manifest.json. Raises `UserError` if it is absent, damaged or of another schema version."""
        path = Path(directory) / "manifest.json"
        if not path.is_file():
            raise UserError(
                f"{directory} holds no finished data set (no manifest.json): run the command that writes it"
            )
        try:
            plain = json.loads(path.read_text())
            if plain["schema_version"] != SCHEMA_VERSION:
                found = plain["schema_version"]
                raise UserError(f"{path} has schema version {found}, this program reads {SCHEMA_VERSION}: rebuild it")
            return Manifest(**{**plain, "shards": tuple(Shard(**shard) for shard in plain["shards"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): rebuild the data set") from error


@dataclass(frozen=True)
class Index:
    """One row a record, in (split, shard, position) order; a *record number* is a row of it.

    Caption `c` of record `i` has `caption_tokens[caption_offsets[i] + c]` tokens, the end-of-text id included. It is
    by `caption_sources[caption_source[caption_offsets[i] + c]]`; the index of an older data set has None.
    """

    split: UInt8[np.ndarray, " n"]
    shard: Int32[np.ndarray, " n"]
    position: Int32[np.ndarray, " n"]
    frames: Int32[np.ndarray, " n"]
    height: Int32[np.ndarray, " n"]
    width: Int32[np.ndarray, " n"]
    fps: Float32[np.ndarray, " n"]
    caption_offsets: Int64[np.ndarray, " n+1"]
    caption_tokens: Int32[np.ndarray, " c"]
    caption_source: Int32[np.ndarray, " c"] | None = None
    caption_sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.split)

    def select(self, split: str) -> Int64[np.ndarray, " m"]:
        """The record numbers of one split, ascending."""
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.split == SPLITS.index(split))

    @staticmethod
    def load(path: Path | str) -> "Index":
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                names = [f.name for f in dataclasses.fields(Index) if f.name in arrays or f.name not in _LATER_COLUMNS]
                columns = {name: arrays[name] for name in names}
            return Index(**{**columns, "caption_sources": tuple(map(str, columns.get("caption_sources", ())))})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is missing or damaged ({error}): rebuild the data set") from error


_LATER_COLUMNS = ("caption_source", "caption_sources")  # index.npz of older data sets has none of them
_DTYPES = {"split": np.uint8, "fps": np.float32, "caption_offsets": np.int64}  # every other column is int32


@dataclass
class _SplitState:
    """The open shard of one split and the index rows written so far."""

    writer: Any = None
    counts: list[int] = dataclasses.field(default_factory=list)
    rows: list[tuple[int, int, int, int, int, float]] = dataclasses.field(default_factory=list)
    caption_tokens: list[list[int]] = dataclasses.field(default_factory=list)
    caption_source: list[str] = dataclasses.field(default_factory=list)


class ShardWriter:
    """Writes one data set. Nothing is visible to readers before `finish` returns.

    Raises `UserError` if DIR already holds a finished data set, on a full disk, or for a record of another kind.
    """

    def __init__(
        self,
        directory: Path | str,
        kind: str,
        records_per_shard: int = 1024,
        tokenizer: Tokenizer | None = None,
        metadata: Mapping[str, Any] | None = None,
    ):
        if kind not in KINDS:
            raise UserError(f"unknown kind of record {kind!r}: choose one of {', '.join(KINDS)}")
        if records_per_shard < 1:
            raise UserError(f"records_per_shard={records_per_shard} must be at least 1")
        self.directory, self.kind, self.records_per_shard = Path(directory), kind, records_per_shard
        if (self.directory / "manifest.json").exists():
            raise UserError(f"{directory} already holds a finished data set: choose another folder or delete it")
        self._tokenizer, self._metadata = tokenizer, dict(metadata or {})
        self._durations_s: list[float] = []
        self._splits = {split: _SplitState() for split in SPLITS}
        self._writing = self.directory / ".writing"
        with on_disk(f"preparing {directory}"):
            shutil.rmtree(self._writing, ignore_errors=True)
            self._writing.mkdir(parents=True)

    def write(self, record: Record) -> None:
        """Appends a record to its split's open shard; record order is the order of the data set."""
        if record.kind != self.kind:
            raise UserError(f"a {record.kind} record does not belong into a {self.kind} data set")
        packed = pack_record(record)
        state = self._splits[record.split]
        with on_disk(f"writing shards into {self.directory}"):
            if not state.counts or state.counts[-1] == self.records_per_shard:
                self._open_next(record.split)
            state.writer.write(packed)
        state.rows.append((len(state.counts) - 1, state.counts[-1], *_shape_of(record), record.fps))
        state.caption_tokens.append([caption.num_tokens for caption in record.captions])
        state.caption_source += [sys.intern(caption.source) for caption in record.captions]
        state.counts[-1] += 1
        self._durations_s.append(record.duration_s)

    def finish(self, extra_metadata: Mapping[str, Any] | None = None) -> Manifest:
        """Closes, checks and publishes everything; the manifest's rename is the commit.

        `extra_metadata` adds what is known only at the end (channel statistics). Raises `UserError` for latents
        without their metadata.
        """
        metadata = {**self._metadata, **(extra_metadata or {})}
        missing = [key for key in _LATENT_METADATA if key not in metadata] if self.kind == "latent" else []
        if missing:
            raise UserError(f"a latent data set needs metadata {', '.join(missing)}: pass them to ShardWriter")
        with on_disk(f"writing shards into {self.directory}"):
            shards = [shard for split in SPLITS for shard in self._close(split)]
            index = self._index()
            np.savez(self._writing / "index.npz", **vars(index))
            if self._tokenizer is not None:
                self._tokenizer.save(self._writing / "tokenizer.model")
            manifest = self._manifest(index, shards, metadata)
            self._publish(manifest)
        return manifest

    def _open_next(self, split: str) -> None:
        state = self._splits[split]
        if state.writer is not None:
            state.writer.close()
        state.writer = ArrayRecordWriter(str(self._writing / f"{split}-{len(state.counts):05d}"), WRITER_OPTIONS)
        state.counts.append(0)

    def _close(self, split: str) -> Iterator[Shard]:
        state = self._splits[split]
        if state.writer is not None:
            state.writer.close()
        for number, num_records in enumerate(state.counts):
            name = f"{split}-{number:05d}-of-{len(state.counts):05d}.array_record"
            path = (self._writing / f"{split}-{number:05d}").rename(self._writing / name)
            if ArrayRecordReader(str(path), READER_OPTIONS).num_records() != num_records:
                raise RuntimeError(f"{name} does not hold its {num_records} records")
            yield Shard(name, split, num_records, path.stat().st_size, sha256_of(path))

    def _index(self) -> Index:
        rows = [(s, *row) for s, split in enumerate(SPLITS) for row in self._splits[split].rows]
        lengths = [tokens for split in SPLITS for tokens in self._splits[split].caption_tokens]
        names = ("split", "shard", "position", "frames", "height", "width", "fps")
        columns: dict[str, Any] = (
            dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
        )
        columns["caption_offsets"] = np.cumsum([0, *map(len, lengths)])
        columns["caption_tokens"] = [count for tokens in lengths for count in tokens]
        by = [source for split in SPLITS for source in self._splits[split].caption_source]
        sources = tuple(sorted(set(by)))
        number = {source: i for i, source in enumerate(sources)}
        columns["caption_source"] = [number[source] for source in by]
        arrays = {name: np.asarray(column, _DTYPES.get(name, np.int32)) for name, column in columns.items()}
        return Index(**arrays, caption_sources=sources)

    def _manifest(self, index: Index, shards: list[Shard], metadata: dict[str, Any]) -> Manifest:
        shapes = Counter(f"{f}x{h}x{w}" for f, h, w in zip(index.frames, index.height, index.width, strict=True))
        durations = sorted(self._durations_s) or [0.0]
        digests = [self.kind, str(SCHEMA_VERSION), *(f"{shard.file} {shard.sha256}" for shard in shards)]
        return Manifest(
            kind=self.kind,
            schema_version=SCHEMA_VERSION,
            counts={split: sum(self._splits[split].counts) for split in SPLITS},
            shards=tuple(shards),
            shapes=dict(sorted(shapes.items(), key=lambda item: (-item[1], item[0]))),
            durations_s={"total": sum(durations), "min": durations[0], "max": durations[-1]},
            num_captions=len(index.caption_tokens),
            fingerprint=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
            tokenizer_fingerprint=None if self._tokenizer is None else self._tokenizer.fingerprint,
            metadata=metadata,
        )

    def _publish(self, manifest: Manifest) -> None:
        text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n"
        (self._writing / "manifest.json").write_text(text)
        for stale in self.directory.glob("*.array_record"):  # left by a run that was killed while publishing
            stale.unlink()
        files = sorted(path for path in self._writing.iterdir() if path.name != "manifest.json")
        for path in [*files, self._writing / "manifest.json"]:
            sync(path)
            os.replace(path, self.directory / path.name)
        sync(self.directory)
        self._writing.rmdir()


class ShardReader:
    """Random access to a finished data set; cheap to pickle, shard files are opened on first use in each process.

    Raises `UserError` if DIR is no finished data set, if files are missing, or if it is not of the `kind` asked for.
    """

    def __init__(self, directory: Path | str, kind: str | None = None):
        self.directory = Path(directory)
        self.manifest = Manifest.load(directory)
        if kind is not None and self.manifest.kind != kind:
            raise UserError(f"{directory} holds {self.manifest.kind} records, but {kind} records are needed here")
        self.index = Index.load(self.directory / "index.npz")
        self._shards = {split: [s for s in self.manifest.shards if s.split == split] for split in SPLITS}
        self._readers: OrderedDict[tuple[str, int], ArrayRecordReader] = OrderedDict()
        total = sum(self.manifest.counts.values())
        if len(self.index) != total:
            raise UserError(f"{directory}: index.npz has {len(self.index)} records, manifest.json {total}: rebuild it")
        absent = [s.file for s in self.manifest.shards if not (self.directory / s.file).is_file()]
        if absent:
            raise UserError(f"{directory}: {len(absent)} shards are missing, first {absent[0]}: copy or rebuild them")
        for shard in self.manifest.shards:
            size_bytes = (self.directory / shard.file).stat().st_size
            if size_bytes != shard.size_bytes:
                path, said = self.directory / shard.file, shard.size_bytes
                raise UserError(f"{path} has {size_bytes} bytes, manifest.json says {said}: copy or rebuild it")

    def num_records(self, split: str | None = None) -> int:
        """Records of one split, or of all."""
        return len(self.index) if split is None else len(self.index.select(split))

    def read(self, record_number: int) -> Record:
        """The record of one row of the index. Raises `IndexError` out of range, `UserError` if it is damaged."""
        if not 0 <= record_number < len(self.index):
            raise IndexError(f"record {record_number} of {len(self.index)} in {self.directory}")
        split = SPLITS[self.index.split[record_number]]
        reader = self._reader(split, int(self.index.shard[record_number]))
        try:
            packed = reader.read([int(self.index.position[record_number])])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise UserError(
                f"{self.directory}: record {record_number} is unreadable ({error}): the shard is damaged"
            ) from error
        return unpack_record(packed)

    def verify(self) -> None:
        """Reads every shard once. Raises `UserError` naming those whose bytes differ from the manifest."""
        damaged = [s.file for s in self.manifest.shards if sha256_of(self.directory / s.file) != s.sha256]
        if damaged:
            raise UserError(f"{self.directory}: damaged shards {', '.join(damaged)}: copy or rebuild them")

    def _reader(self, split: str, number: int) -> ArrayRecordReader:
        if (split, number) not in self._readers:
            path = self.directory / self._shards[split][number].file
            try:
                self._readers[split, number] = ArrayRecordReader(str(path), READER_OPTIONS)
            except (RuntimeError, OSError, ValueError) as error:
                raise UserError(f"{path} cannot be opened ({error}): copy or rebuild it") from error
        self._readers.move_to_end((split, number))
        while len(self._readers) > MAX_OPEN_SHARDS:
            self._readers.popitem(last=False)[1].close()
        return self._readers[split, number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": OrderedDict()}


def _shape_of(record: Record) -> tuple[int, int, int]:
    """(frames, height, width) as the index stores them: of the used crop for clips, latent units for latents."""
    return (record.num_frames, *record.crop[2:]) if record.kind == "clip" else record.shape[:3]


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def on_disk(action: str) -> Iterator[None]:
    """ArrayRecord reports a failed write as RuntimeError, Python as OSError: both are the user's disk."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, action) from error
    except RuntimeError as error:
        raise UserError(f"{action} failed ({error}): check the free space and permissions") from error
