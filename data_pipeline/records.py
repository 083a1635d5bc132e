"""The records inside the shards, schema version 1: `docs/records.md` in code.

A record is one frozen dataclass, stored as one msgpack map. `unpack_record` checks every field, so that whatever
reads a record may trust it: a damaged or foreign record is one clear `UserError`, never a `KeyError` later.
"""

import dataclasses
import hashlib
import typing
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from jaxtyping import Shaped

from data_pipeline.errors import UserError

SCHEMA_VERSION = 1
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Caption:
    """One description of a clip. `num_tokens` counts the data set's tokenizer's ids with the end-of-text id."""

    text: str
    source: str
    language: str = "und"
    num_tokens: int = 1


@dataclass(frozen=True)
class ClipRecord:
    """An encoded video (or image) and what is known about it.

    `video` holds whole file bytes; the clip is `[start_s, end_s)` of them, `num_frames` frames at `fps`.
    `height` and `width` are display pixels, after rotation and sample aspect ratio; `crop` is the region of them
    to use as (top, left, height, width); `checksum` is the hexadecimal sha256 of `video`.
    """

    clip_id: str
    source_id: str
    group_id: str
    split: str
    video: bytes
    media_type: str
    start_s: float
    end_s: float
    fps: float
    num_frames: int
    height: int
    width: int
    crop: tuple[int, int, int, int]
    colour: dict[str, str]
    license: str
    checksum: str
    captions: tuple[Caption, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    kind: str = "clip"

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    def check(self) -> None:
        """Raises `UserError` where fields contradict each other."""
        _require(self.num_frames >= 1 and self.fps > 0, f"num_frames={self.num_frames}, fps={self.fps}")
        top, left, height, width = self.crop
        inside = 0 <= top <= self.height - height and 0 <= left <= self.width - width and min(height, width) >= 1
        _require(inside, f"crop {self.crop} of a {self.width}x{self.height} frame")
        digest = hashlib.sha256(self.video).hexdigest()
        _require(digest == self.checksum, f"checksum {self.checksum[:12]}, but the bytes give {digest[:12]}")


@dataclass(frozen=True)
class LatentRecord:
    """The posterior mean of one encoded window that starts at latent 0, as little-endian bfloat16 bytes.

    `shape` is (F, H, W, C); F latents code `1 + temporal_compression * (F - 1)` pixel frames at `fps`.
    """

    clip_id: str
    source_id: str
    group_id: str
    split: str
    latents: bytes
    shape: tuple[int, int, int, int]
    fps: float
    start_s: float
    temporal_compression: int
    spatial_compression: int
    captions: tuple[Caption, ...]
    scores: dict[str, float]
    autoencoder_fingerprint: str
    data_fingerprint: str
    schema_version: int = SCHEMA_VERSION
    kind: str = "latent"

    @property
    def num_frames(self) -> int:
        """Pixel frames of the window."""
        return 1 + self.temporal_compression * (self.shape[0] - 1)

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    def latent_array(self) -> Shaped[np.ndarray, "F H W C"]:
        """The latents as a read-only `ml_dtypes.bfloat16` array."""
        return np.frombuffer(self.latents, dtype=ml_dtypes.bfloat16).reshape(self.shape)

    def check(self) -> None:
        """Raises `UserError` where fields contradict each other."""
        _require(min(self.shape) >= 1 and self.fps > 0, f"shape {self.shape}, fps={self.fps}")
        size_bytes = 2 * int(np.prod(self.shape))
        _require(len(self.latents) == size_bytes, f"{len(self.latents)} bytes of latents, shape says {size_bytes}")
        _require(min(self.temporal_compression, self.spatial_compression) >= 1, "a compression below 1")


Record = ClipRecord | LatentRecord
_KINDS: dict[str, type] = {"clip": ClipRecord, "latent": LatentRecord}


def pack_record(record: Record) -> bytes:
    """One record as msgpack bytes; equal records give equal bytes. Raises `UserError` if it breaks the schema."""
    plain = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    plain["captions"] = [dataclasses.asdict(caption) for caption in record.captions]
    _check_record(_build(type(record), plain))
    plain = {name: dict(sorted(value.items())) if isinstance(value, dict) else value for name, value in plain.items()}
    return msgpack.packb(plain, use_bin_type=True)


def unpack_record(packed: bytes) -> Record:
    """The record that `pack_record` stored. Raises `UserError` for anything that is not a valid schema 1 record."""
    try:
        plain = msgpack.unpackb(packed, raw=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise UserError(f"a record of {len(packed)} bytes is not msgpack ({error}): the shard is damaged") from error
    _require(isinstance(plain, dict) and plain.get("kind") in _KINDS, f"kind must be one of {sorted(_KINDS)}")
    version = plain.get("schema_version")
    _require(version == SCHEMA_VERSION, f"schema_version {version}, this program reads {SCHEMA_VERSION}")
    record = _build(_KINDS[plain["kind"]], plain)
    _check_record(record)
    return record


def _check_record(record: Record) -> None:
    _require(record.split in SPLITS, f"split {record.split!r}, expected one of {SPLITS}")
    record.check()


def _build(cls: type, plain: dict[str, Any]) -> Any:
    """`cls(**plain)` after checking that the fields are exactly those of `cls`, each of its declared type."""
    hints = typing.get_type_hints(cls)
    missing, unknown = sorted(set(hints) - set(plain)), sorted(set(plain) - set(hints))
    _require(not missing and not unknown, f"{cls.__name__}: missing fields {missing}, unknown fields {unknown}")
    return cls(**{name: _typed(hint, plain[name], f"{cls.__name__}.{name}") for name, hint in hints.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the declared type `hint`; msgpack has lists for tuples and may hold an int for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value if isinstance(value, dict) else {})
    if origin is dict:
        _require(isinstance(value, dict), f"{where} is a {type(value).__name__}, expected a map")
        return {_typed(args[0], k, where): _typed(args[1], v, where) for k, v in value.items()}
    if origin is tuple:
        _require(isinstance(value, list | tuple), f"{where} is a {type(value).__name__}, expected a list")
        items = (args[0],) * len(value) if args[-1] is ... else args
        _require(len(items) == len(value), f"{where} has {len(value)} items, expected {len(items)}")
        return tuple(_typed(item, v, where) for item, v in zip(items, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _require(type(value) is hint, f"{where} is a {type(value).__name__}, expected {hint.__name__}")
    return value


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise UserError(f"invalid record: {problem}; rebuild the shards with this version of sora-jax")
