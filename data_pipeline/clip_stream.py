"""The autoencoder stream: clip shards to batches of raw pixels, one crop shape a step.

`ClipSource[step]` is a pure function of (data fingerprint, seed, step). Shapes come in shuffled cycles that hold each
shape as often as its weight says, so the number of earlier steps of a shape is arithmetic, and every shape goes
through seeded permutations of the clips that are large and long enough for it: each of them once an epoch.
"""

import dataclasses
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.permutation import hash_u64, key_from, permute, shuffle
from data_pipeline.prefetch import Batch
from data_pipeline.records import ClipRecord
from data_pipeline.shards import ShardReader
from data_pipeline.unreadable import Unreadable
from data_pipeline.video_io import decode_record

CYCLE_STEPS = 32
MAX_REPLACEMENTS = 64

Crop = tuple[int, int, int]
Video = UInt8[np.ndarray, "T Y X 3"]


@dataclass(frozen=True)
class ClipStreamConfig:
    """`crops`: (frames, height, width) in pixels, drawn by `weights` (empty: equally often).

    `batch_size`: clips of a global step. `fps`: the rate that clips are resampled to, None for each clip's own.
    `rates`: in place of `fps`, rates of which each clip draws one that is not above its own.
    `min_scale`: clips are shrunk by a random factor down to this, or until the crop just fits; never enlarged.
    `cache_bytes`: a data set that fits into this once decoded stays decoded in memory, in each process; of a larger
    one every clip is decoded each time, as far as it is needed.
    """

    crops: tuple[Crop, ...]
    batch_size: int
    weights: tuple[float, ...] = ()
    fps: float | None = None
    min_scale: float = 0.0
    seed: int = 0
    cache_bytes: int = 1 << 30
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.crops or any(len(crop) != 3 or min(crop) < 1 for crop in self.crops):
            raise UserError(f"crops are {self.crops}, but must be (frames, height, width), each at least 1")
        if self.weights and (len(self.weights) != len(self.crops) or min(self.weights) <= 0):
            raise UserError(f"{len(self.crops)} crops need as many weights above 0, not {self.weights}")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}, but must be at least 1")
        if self.fps is not None and self.fps <= 0:
            raise UserError(f"fps is {self.fps}, but must be above 0, or None for each clip's own rate")
        if self.rates and (self.fps is not None or min(self.rates) <= 0):
            raise UserError(f"rates are {self.rates} with fps {self.fps}, but must be above 0, and fps None then")
        if not 0 <= self.min_scale <= 1:
            raise UserError(f"min_scale is {self.min_scale}, but must be between 0 and 1")

    @property
    def shapes(self) -> tuple[Crop, ...]:
        """The different shapes of the stream's batches: one compilation each."""
        return tuple(dict.fromkeys(self.crops))

    def cycle(self) -> tuple[int, ...]:
        """Crop numbers of one cycle of steps, each about as often as its weight says and at least once."""
        weights = np.asarray(self.weights or (1.0,) * len(self.crops))
        counts = np.maximum(1, np.round(weights / weights.sum() * max(CYCLE_STEPS, len(weights)))).astype(int)
        return tuple(np.repeat(np.arange(len(counts)), counts // np.gcd.reduce(counts)).tolist())


class ClipSource:
    """`source[step] -> {"video": uint8 [B, T, Y, X, 3], "clip_ids": int32 [B], "num_unreadable": int32 []}`.

    B are this host's rows `[lo, hi)` of the global batch. A clip that does not decode is replaced by the next in
    order, logged once and counted. Picklable; safe in threads. Raises UserError on construction for a directory
    without clips or a crop that no clip of the split is large and long enough for.
    """

    def __init__(
        self, directory: Path | str, cfg: ClipStreamConfig, split: str = "train", rows: tuple[int, int] | None = None
    ):
        lo, hi = rows or (0, cfg.batch_size)
        if not 0 <= lo < hi <= cfg.batch_size:
            raise UserError(f"rows [{lo}, {hi}) are not rows of a batch of {cfg.batch_size}")
        self.directory, self.cfg, self.split, self.rows = Path(directory), cfg, split, (lo, hi)
        self.reader = ShardReader(directory, kind="clip")
        self._key = key_from("clips", self.reader.manifest.fingerprint, cfg.seed, split)
        self._cycle = np.asarray(cfg.cycle())
        self._fps = self._draw_rates()
        self._eligible = [self._records_for(crop) for crop in cfg.crops]
        self._lock = threading.Lock()
        self._decoded: dict[int, Video] = {}
        self._keeps_decoded = self._decoded_bytes() <= cfg.cache_bytes
        self._unreadable = Unreadable(self.directory)

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipSource, (self.directory, self.cfg, self.split, self.rows)

    def __getitem__(self, step: int) -> Batch:
        """This host's rows of `step`."""
        crop, earlier = self._crop(int(step))
        drawn = [self._video(int(step), row, crop, earlier) for row in range(*self.rows)]
        videos, clips, failures = zip(*drawn, strict=True)
        return {
            "video": np.stack(videos),
            "clip_ids": np.asarray(clips, np.int32),
            "num_unreadable": np.asarray(sum(failures), np.int32),
        }

    @property
    def fingerprint(self) -> str:
        """The data set's."""
        return self.reader.manifest.fingerprint

    def num_clips(self, split: str) -> int:
        """Clips of any split of the data set, whether or not they hold a crop."""
        return self.reader.num_records(split)

    @property
    def eligible(self) -> dict[Crop, np.ndarray]:
        """The record numbers of the clips that hold each crop."""
        return dict(zip(self.cfg.crops, self._eligible, strict=True))

    def shape(self, step: int) -> Crop:
        """(frames, height, width) of every video of a step."""
        return self.cfg.crops[self._crop(step)[0]]

    def _crop(self, step: int) -> tuple[int, int]:
        """(crop number of `step`, how many earlier steps had it)."""
        cycle, place = divmod(step, len(self._cycle))
        order = self._cycle[shuffle(key_from(self._key, "cycle", cycle), len(self._cycle))]
        crop = order[place]
        return int(crop), cycle * int((order == crop).sum()) + int((order[:place] == crop).sum())

    def _records_for(self, crop: Crop) -> np.ndarray:
        """Record numbers of the split that hold `crop` without enlarging. Raises UserError when there are none."""
        index, records = self.reader.index, self.reader.index.select(self.split)
        if not len(records):
            raise UserError(f'{self.directory} has no clips in its "{self.split}" split: add clips to it')
        frames = self._num_frames(records)
        height, width = index.height[records], index.width[records]
        fits = (frames >= crop[0]) & (height >= crop[1]) & (width >= crop[2])
        if not fits.any():
            raise UserError(
                f"no clip of {self.directory} ({self.split}) holds a crop of {crop[0]} frames of {crop[2]}x{crop[1]}: "
                f"the longest has {frames.max()} frames, the largest is {width.max()}x{height.max()}; "
                "choose smaller crops (clips are never enlarged)"
            )
        return records[fits]

    def _draw_rates(self) -> np.ndarray:
        """[records]: the rate of each clip in the stream, 0 for its own; of several, drawn by its number."""
        index = self.reader.index
        drawn = np.full(len(index), self.cfg.fps or 0.0)
        if self.cfg.rates:
            rates = np.asarray(sorted(self.cfg.rates))
            possible = (rates <= index.fps[:, None]).sum(axis=1)
            count = np.maximum(possible, 1).astype(np.uint64)
            place = hash_u64(key_from(self._key, "rate"), np.arange(len(index))) % count
            drawn = np.where(possible > 0, rates[place.astype(np.int64)], 0.0)
        return drawn

    def _num_frames(self, records: np.ndarray) -> np.ndarray:
        """Frames at the stream's rate. Stretching in time is allowed down to what the clip's own frames cover."""
        index, fps = self.reader.index, self._fps[records]
        drawn = np.maximum(1, np.round(index.frames[records] / index.fps[records] * fps))
        return np.where(fps > 0, drawn, index.frames[records]).astype(np.int64)

    def _video(self, step: int, row: int, crop: int, earlier: int) -> tuple[Any, int, int]:
        """(what `_cut` makes of the clip in its turn, its record number, how many before it did not decode)."""
        eligible = self._eligible[crop]
        position = earlier * self.cfg.batch_size + row
        for failures in range(min(MAX_REPLACEMENTS, len(eligible))):
            epoch, turn = divmod(position + failures, len(eligible))
            number = int(eligible[permute(key_from(self._key, "order", crop), epoch, len(eligible), turn)[0]])
            rng = np.random.Generator(np.random.Philox(key=[self._key, int(hash_u64(self._key, step, row, failures))]))
            try:
                video = self._cut(number, self.cfg.crops[crop], rng)
            except UserError as error:
                self._unreadable.count(number, error)
                continue
            self._unreadable.count(number, None)
            return video, number, failures
        raise UserError(
            f"{self.directory}: {min(MAX_REPLACEMENTS, len(eligible))} clips in a row do not decode, the last being "
            f"record {number}: look at the warnings above and build the data set again"
        )

    def _cut(self, number: int, crop: Crop, rng: np.random.Generator) -> Any:
        """A random part of a clip: time, scale and place are drawn in this order."""
        available = int(self._num_frames(np.asarray([number]))[0])
        start = int(rng.integers(0, available - crop[0] + 1))
        frames = self._frames(number, start, crop[0], available)
        return scale_and_crop(frames, crop[1], crop[2], self.cfg.min_scale, rng)

    def _frames(self, number: int, start: int, count: int, available: int) -> Video:
        """`count` frames of a record from frame `start` at the stream's rate."""
        with self._lock:
            if number in self._decoded:
                return self._decoded[number][start : start + count]
            record = self.reader.read(number)
        fps = float(self._fps[number]) or None
        if not self._keeps_decoded:
            return self._exactly(decode_range(record, start, count, fps), count, number)
        video = self._exactly(decode_range(record, 0, available, fps), available, number)
        self._decoded[number] = np.ascontiguousarray(video)
        return video[start : start + count]

    def _decoded_bytes(self) -> int:
        """Of all clips that some crop takes, at the stream's rate."""
        index, records = self.reader.index, np.unique(np.concatenate(self._eligible))
        pixels = index.height[records].astype(np.int64) * index.width[records]
        return int((3 * pixels * self._num_frames(records)).sum())

    def _exactly(self, frames: Video, count: int, number: int) -> Video:
        if len(frames) < count:
            raise UserError(f"record {number} decodes to {len(frames)} frames, {count} were expected")
        return frames[:count]


def decode_range(record: ClipRecord, start: int, count: int, fps: float | None) -> Video:
    """`count` frames from frame `start` at `fps` (None: the record's). Earlier frames are decoded, but never kept."""
    rate = fps or record.fps
    start_s = record.start_s + start / rate
    part = dataclasses.replace(record, start_s=start_s, end_s=start_s + count / rate, num_frames=count)
    return decode_record(part, fps=rate)[0]


def scale_and_crop(
    frames: Video, height: int, width: int, min_scale: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "T {height} {width} 3"]:
    """[T, height, width, 3]: frames shrunk (antialiased) by one random factor, then cropped at one random place."""
    _, full_height, full_width, _ = frames.shape
    smallest = min(1.0, max(height / full_height, width / full_width, min_scale))
    scale = float(np.exp(rng.uniform(np.log(smallest), 0.0)))
    box_height, box_width = min(height / scale, full_height), min(width / scale, full_width)
    top, left = rng.uniform(0, full_height - box_height), rng.uniform(0, full_width - box_width)
    if scale == 1.0:
        top, left = round(top), round(left)
        return frames[:, top : top + height, left : left + width]
    box = (left, top, min(left + box_width, full_width), min(top + box_height, full_height))
    resized = (Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box) for frame in frames)
    return np.stack([np.asarray(image) for image in resized])
