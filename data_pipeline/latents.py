"""Clip shards → latent shards: windows of clips through an encoder that is passed in as a function.

Each clip is cut into windows of `1 + c n` frames (a latent window is legal only if it starts at latent 0 of an
encoding), scaled down to a short side, cropped to what the encoder can divide, and encoded in batches of one shape.
Work is done in blocks of clips that are kept under `OUT/.encoding`: a killed job goes on with the next block, and the
same input gives the same shards.
"""

import collections
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.errors import UserError
from data_pipeline.permutation import key_from
from data_pipeline.records import Caption, ClipRecord, LatentRecord, pack_record, unpack_record
from data_pipeline.shards import Manifest, ShardReader, ShardWriter
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.video_io import iterate_record, record_frames, resize_and_crop

EncodeFn = Callable[[UInt8[np.ndarray, "B T Y X 3"]], Float32[np.ndarray, "B F H W C"]]
CLIPS_PER_BLOCK = 256


@dataclass(frozen=True)
class Encoding:
    """The encoder as data sees it. `statistics` are the per-channel (mean, deviation) of its latents."""

    encode: EncodeFn
    temporal_compression: int
    spatial_compression: int
    fingerprint: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class WindowConfig:
    """How clips become windows. `max_frames` is cut down to the next `1 + c n`; `short_side` 0 keeps the size (it is
    never enlarged); `fps` 0 keeps the rate, and of several rates each clip gets the one that its id draws; sizes become
    multiples of `latent_multiple` latents.
    """

    max_frames: int = 65
    short_side: int = 0
    fps: float | tuple[float, ...] = 0.0
    latent_multiple: int = 1
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, least in (
            ("max_frames", 1),
            ("latent_multiple", 1),
            ("batch_size", 1),
            ("short_side", 0),
        ):
            if not getattr(self, name) >= least:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        if isinstance(self.fps, tuple):  # in any order they are the same data
            object.__setattr__(self, "fps", tuple(sorted(self.fps)))
        if any(not 0 <= rate < math.inf for rate in self.rates) or (len(self.rates) > 1 and min(self.rates) == 0):
            raise UserError(f"fps is {self.fps}, but must be 0 (each clip's own), or one or several rates above 0")

    @property
    def rates(self) -> tuple[float, ...]:
        """What `fps` allows; clips that are slower keep their own."""
        return self.fps if isinstance(self.fps, tuple) else (self.fps,)


@dataclass(frozen=True)
class Window:
    """Pixels of one window and the clip that it comes from; `frames_cut` of the clip's frames behind it, which make
    no whole latent, are in no window."""

    record: ClipRecord
    frames: UInt8[np.ndarray, "T Y X 3"]
    fps: float
    start_s: float
    frames_cut: int = 0


def cut_windows(record: ClipRecord, cfg: WindowConfig, temporal: int, spatial: int) -> Iterator[Window]:
    """The legal windows of one clip, decoded and scaled one at a time.

    Raises UserError when it does not decode (any further) or is smaller than one latent.
    """
    fps = _rate(record, cfg.rates)
    num_frames = record_frames(record, fps)
    edges = list(_window_edges(num_frames, _legal(cfg.max_frames, temporal), temporal))
    left_over = num_frames - sum(stop - start for start, stop in edges)
    multiple = spatial * cfg.latent_multiple
    scaled = (fit_size(frame[None], cfg.short_side, multiple)[0] for frame in iterate_record(record, fps))
    for start, stop in edges:
        window = np.stack(list(islice(scaled, stop - start)))
        frames_cut = left_over if stop == edges[-1][1] else 0
        yield Window(record, window, fps, record.start_s + start / fps, frames_cut)


def _rate(record: ClipRecord, rates: tuple[float, ...]) -> float:
    """One of the rates that the clip has, drawn by its id alone; its own where all are higher."""
    possible = [rate for rate in rates if 0 < rate <= record.fps] or [record.fps]
    return possible[key_from("fps", record.clip_id) % len(possible)]


def _window_edges(num_frames: int, longest: int, temporal: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_frames, longest):
        length = _legal(min(longest, num_frames - start), temporal)
        if start and length < min(longest, 1 + temporal):
            return  # what is left of a long clip is too short to show motion
        yield start, start + length


def fit_size(frames: UInt8[np.ndarray, "T Y X 3"], short_side: int, multiple: int) -> UInt8[np.ndarray, "T y x 3"]:
    """Scaled down to `short_side` (0: not at all), sides cut to multiples. Raises UserError for smaller frames."""
    height, width = frames.shape[1:3]
    scale = min(1.0, short_side / min(height, width)) if short_side else 1.0
    target = [round(n * scale) // multiple * multiple for n in (height, width)]
    if min(target) < multiple:
        raise UserError(f"{width}x{height} pixels are less than the {multiple}x{multiple} that the encoder needs")
    return resize_and_crop(frames, *target)


def encode_latents(
    data: Path, out: Path, encoding: Encoding, cfg: WindowConfig, on_clip: Callable[[], Any]
) -> dict[str, Any]:
    """Encodes every clip of `data` into a latent data set at `out`; returns counts. `on_clip` is called for each clip.

    Raises UserError when `out` holds other latents or nothing can be encoded.
    """
    reader = ShardReader(data, kind="clip")
    described = _description(reader.manifest, encoding, cfg)
    if (out / "manifest.json").exists():
        return _finished(out, described)
    staging = out / ".encoding" / described["options"]
    staging.mkdir(parents=True, exist_ok=True)
    total = reader.num_records()
    for block, first in enumerate(range(0, total, CLIPS_PER_BLOCK)):
        numbers = range(first, min(first + CLIPS_PER_BLOCK, total))
        _encode_block(staging / f"{block:06d}.msgpack", reader, numbers, encoding, cfg, on_clip)
    return _assemble(out, staging, data, described)


def estimate_statistics(
    reader: ShardReader, encode: EncodeFn, cfg: WindowConfig, compression: tuple[int, int], num_clips: int = 256
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and deviation of the latents of up to `num_clips` training clips, evenly spaced."""
    records = reader.index.select("train")
    chosen = records[np.unique(np.linspace(0, len(records) - 1, min(num_clips, len(records))).astype(int))]
    rejected: list[dict[str, Any]] = []
    windows = _windows(reader, chosen, cfg, compression, rejected)
    values = [z.reshape(-1, z.shape[-1]) for _, z in _encode_windows(windows, encode, cfg.batch_size)]
    if not values:
        reason = rejected[0]["reason"] if rejected else "there are none"
        raise UserError(f"none of {len(chosen)} training clips can be encoded: {reason}")
    latents = np.concatenate(values)
    mean, std = latents.mean(0, dtype=np.float64), latents.std(0, dtype=np.float64)
    # A dead channel has no deviation: dividing by a tiny one would blow rounding noise up into a signal.
    return tuple(map(float, mean)), tuple(map(float, np.maximum(std, 1e-2 * std.max() + 1e-6)))


def _legal(num_frames: int, temporal: int) -> int:
    return 1 + (num_frames - 1) // temporal * temporal


def _description(manifest: Manifest, encoding: Encoding, cfg: WindowConfig) -> dict[str, str]:
    facts = [manifest.fingerprint, encoding.fingerprint, json.dumps(dataclasses.asdict(cfg), sort_keys=True)]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    mean, std = encoding.statistics
    return {
        "options": digest,
        "autoencoder_fingerprint": encoding.fingerprint,
        "data_fingerprint": manifest.fingerprint,
        "latent_mean": list(mean),
        "latent_std": list(std),
        "channels": len(mean),
        "temporal_compression": encoding.temporal_compression,
        "spatial_compression": encoding.spatial_compression,
    }


def _finished(out: Path, described: dict[str, Any]) -> dict[str, Any]:
    manifest = Manifest.load(out)
    for name in ("autoencoder_fingerprint", "data_fingerprint", "options"):
        found = manifest.metadata.get(name, "")
        if found != described[name]:
            hint = " (another --latent_scale makes another)" if name == "autoencoder_fingerprint" else ""
            raise UserError(
                f"{out} holds latents of another {name.replace('_', ' ')}: {str(found)[:12]} there, "
                f"{str(described[name])[:12]} now{hint}; choose another folder or delete it"
            )
    return _counts(manifest, out)


def _counts(manifest: Manifest, out: Path) -> dict[str, Any]:
    rejected = len((out / "rejected.jsonl").read_text().splitlines())
    return {
        "windows": sum(manifest.counts.values()),
        **manifest.counts,
        "rejected": rejected,
        "frames_cut": manifest.metadata.get("frames_cut", 0),
        "out": str(out),
    }


def _windows(
    reader: ShardReader, numbers: Any, cfg: WindowConfig, compression: tuple[int, int], rejected: list[dict[str, Any]]
) -> Iterator[Window]:
    """The windows of these records, one window's pixels at a time; what is rejected, and why, is added to `rejected`.

    A clip that breaks off, which `data build` leaves none of, keeps the windows before."""
    for number in numbers:
        record = None
        try:
            record = reader.read(int(number))
            yield from cut_windows(record, cfg, *compression)
        except UserError as error:
            rejected.append({"record": int(number), "clip_id": record.clip_id if record else "", "reason": str(error)})


def _encode_windows(
    windows: Iterable[Window], encode: EncodeFn, batch_size: int
) -> list[tuple[Window, Float32[np.ndarray, "F H W C"]]]:
    """Each window, without its pixels, and its latents, in order.

    Windows of one shape wait for a full batch (the last is filled up, so that a shape is compiled once): at most one
    batch of each shape is in memory.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, Window]]] = collections.defaultdict(list)
    done: dict[int, tuple[Window, np.ndarray]] = {}

    def flush(members: list[tuple[int, Window]]) -> None:
        frames = [window.frames for _, window in members]
        latents = encode(np.stack([*frames, *[frames[-1]] * (batch_size - len(frames))]))
        for (number, window), value in zip(members, latents, strict=False):
            done[number] = dataclasses.replace(window, frames=window.frames[:0]), np.array(value)
        members.clear()

    for number, window in enumerate(windows):
        members = waiting[window.frames.shape]
        members.append((number, window))
        if len(members) == batch_size:
            flush(members)
    for members in filter(None, waiting.values()):
        flush(members)
    return [done[number] for number in sorted(done)]


def _encode_block(
    path: Path, reader: ShardReader, numbers: range, encoding: Encoding, cfg: WindowConfig, on_clip: Callable[[], Any]
) -> None:
    if not path.exists():
        rejected: list[dict[str, Any]] = []
        compression = encoding.temporal_compression, encoding.spatial_compression
        windows = _windows(reader, numbers, cfg, compression, rejected)
        fingerprint = reader.manifest.fingerprint
        encoded = _encode_windows(windows, encoding.encode, cfg.batch_size)
        block = {
            "records": [pack_record(_latent_record(*pair, encoding, fingerprint)) for pair in encoded],
            "rejected": rejected,
            "frames_cut": sum(window.frames_cut for window, _ in encoded),
        }
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(msgpack.packb(block))
        os.replace(temporary, path)
    for _ in numbers:
        on_clip()


def _latent_record(window: Window, latents: np.ndarray, encoding: Encoding, data_fingerprint: str) -> LatentRecord:
    record = window.record
    return LatentRecord(
        clip_id=f"{record.clip_id}@{window.start_s:.3f}",
        source_id=record.source_id,
        group_id=record.group_id,
        split=record.split,
        latents=np.asarray(latents, ml_dtypes.bfloat16).tobytes(),
        shape=tuple(int(n) for n in latents.shape),
        fps=float(window.fps),
        start_s=float(window.start_s),
        temporal_compression=encoding.temporal_compression,
        spatial_compression=encoding.spatial_compression,
        captions=tuple(Caption(c.text, c.source, c.language, c.num_tokens) for c in record.captions),
        scores=dict(record.scores),
        autoencoder_fingerprint=encoding.fingerprint,
        data_fingerprint=data_fingerprint,
    )


def _assemble(out: Path, staging: Path, data: Path, described: dict[str, Any]) -> dict[str, Any]:
    """Shards from the finished blocks, in their order; the manifest commits them and the blocks go."""
    tokenizer = Tokenizer.load(data / "tokenizer.model")
    writer = ShardWriter(out, "latent", tokenizer=tokenizer, metadata=described)
    rejected, num_records, frames_cut = [], 0, 0
    for block in _blocks(staging):
        rejected += block["rejected"]
        frames_cut += block["frames_cut"]
        num_records += len(block["records"])
        for packed in block["records"]:
            writer.write(unpack_record(packed))
    if not num_records:
        raise UserError(f"no clip of {data} could be encoded: {rejected[0]['reason'] if rejected else 'it is empty'}")
    (out / "rejected.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rejected))
    manifest = writer.finish({"frames_cut": frames_cut})
    shutil.rmtree(out / ".encoding")
    return _counts(manifest, out)


def _blocks(staging: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(staging.glob("*.msgpack")):
        yield msgpack.unpackb(path.read_bytes())
