"""The captioner's stream: clip shards to whole clips on one canvas, each with one of its captions as token ids.

`CaptionSource[step]` is a pure function of (data fingerprint, seed, step), as in `clip_stream.py`: its clips, and
their order, are those of a `ClipSource` with one crop. A clip is decoded on the fly: frames evenly spread over it,
shrunk until they fit. Which caption a row gets is drawn by the weights of the sources at that step.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from data_pipeline.caption_draw import CaptionDraw, check_names, check_weights
from data_pipeline.clip_stream import ClipSource, ClipStreamConfig, Crop, Video
from data_pipeline.errors import UserError
from data_pipeline.prefetch import Batch
from data_pipeline.records import Caption, ClipRecord
from data_pipeline.stream import load_tokenizer
from data_pipeline.video_io import iterate_record

Weights = Mapping[str, float]


@dataclass(frozen=True)
class CaptionStage:
    """By which weights captions are drawn from step `start` on."""

    start: int = 0
    caption_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionStreamConfig:
    """`canvas`: (frames, height, width) that every clip is brought to. Of a longer clip as many frames are taken,
    evenly spread; a larger one is shrunk, never enlarged; what is left of the canvas is zero.

    `caption_weights`: by which one of a clip's captions is drawn (`caption_draw.py`); empty: each equally often.
    `stages` instead: weights that change at fixed steps. `max_tokens`: a caption's ids with the end of text; what a
    longer one has beyond is cut off together with its end, so that nobody learns to end there, and counted.
    """

    canvas: Crop
    batch_size: int
    max_tokens: int = 64
    caption_weights: dict[str, float] = field(default_factory=dict)
    stages: tuple[CaptionStage, ...] = ()
    seed: int = 0
    cache_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise UserError(f"max_tokens is {self.max_tokens}, but must be at least 2: a token and the end of text")
        if self.stages and self.caption_weights:
            raise UserError("there are both caption_weights and stages; give the weights within the stages")
        starts = [stage.start for stage in self.stages]
        if self.stages and (starts[0] != 0 or sorted(set(starts)) != starts):
            raise UserError(f"stages start at the steps {starts}, but must start at 0 and then later and later")
        for weights in self.weights_of_stages():
            check_weights(weights)

    def weights_of_stages(self) -> list[Weights]:
        """One mapping a stage."""
        return [stage.caption_weights for stage in self.stages] or [self.caption_weights]

    def stage_at(self, step: int) -> int:
        """The number of the stage that `step` lies in."""
        return max(0, sum(stage.start <= step for stage in self.stages) - 1)

    def of_last_stage(self) -> "CaptionStreamConfig":
        """The same with the last stage's weights from the start: what held-out clips are measured with."""
        return dataclasses.replace(self, caption_weights=dict(self.weights_of_stages()[-1]), stages=())

    def crops(self) -> ClipStreamConfig:
        """The stream of clips."""
        return ClipStreamConfig((self.canvas,), self.batch_size, seed=self.seed, cache_bytes=self.cache_bytes)


class Shown(NamedTuple):
    """A clip's frames as they fit, and all of its captions."""

    frames: Video
    captions: tuple[Caption, ...]


class CaptionSource(ClipSource):
    """`source[step]` -> the rows `[lo, hi)` of the global batch, B of them:

        video          uint8 [B, T, Y, X, 3]  the canvas; the clip lies at its beginning, top and left
        extents        int32 [B, 3]           (frames, height, width) of the clip on it
        text_ids       int32 [B, S]           the caption's ids and the end of text, then 0
        text_lengths   int32 [B]              how many they are
        is_truncated, is_unweighted  bool [B] the caption was too long; its source has no weight
        clip_ids       int32 [B], num_unreadable int32 []: as in ClipSource

    Only clips with a caption are taken. Raises UserError on construction where there are none, or where a stage weighs
    a source that no caption is of.
    """

    def __init__(
        self, directory: Path | str, cfg: CaptionStreamConfig, split: str = "train", rows: tuple[int, int] | None = None
    ):
        self.captioned = cfg
        super().__init__(directory, cfg.crops(), split, rows)
        self.tokenizer = load_tokenizer(self.reader.directory, self.reader.manifest)
        self._shown: dict[int, Shown] = {}
        index = self.reader.index
        for weights in cfg.weights_of_stages():
            check_names(weights, [index])
        self._draws = [CaptionDraw(index, weights, self._key) for weights in cfg.weights_of_stages()]

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionSource, (self.directory, self.captioned, self.split, self.rows)

    def __getitem__(self, step: int) -> Batch:
        """This host's rows of `step`."""
        step, (lo, hi) = int(step), self.rows
        drawn = [self._video(step, row, 0, step) for row in range(lo, hi)]
        shown, clips, failures = zip(*drawn, strict=True)
        draw, records = self._draws[self.captioned.stage_at(step)], np.asarray(clips, np.int64)
        places = step * self.captioned.batch_size + np.arange(lo, hi)  # a clip may come twice in a step
        captions, _ = draw.draw(places, records)
        ids = [self._ids(one.captions[caption]) for one, caption in zip(shown, captions, strict=True)]
        return {
            "video": np.stack([on_canvas(one.frames, self.captioned.canvas) for one in shown]),
            "extents": np.asarray([one.frames.shape[:3] for one in shown], np.int32),
            "text_ids": np.stack([np.pad(row, (0, self.captioned.max_tokens - len(row))) for row in ids]),
            "text_lengths": np.asarray([len(row) for row in ids], np.int32),
            "is_truncated": np.asarray([row[-1] != self.tokenizer.eos_id for row in ids]),
            "is_unweighted": draw.lacks_names(records),
            "clip_ids": records.astype(np.int32),
            "num_unreadable": np.asarray(sum(failures), np.int32),
        }

    def _ids(self, caption: Caption) -> np.ndarray:
        return np.asarray(self.tokenizer.caption_ids(caption.text)[: self.captioned.max_tokens], np.int32)

    def _records_for(self, crop: Crop) -> Int64[np.ndarray, " n"]:
        """Record numbers of the split's clips that have a caption; all of them fit."""
        records, offsets = self.reader.index.select(self.split), self.reader.index.caption_offsets
        found = records[offsets[records + 1] > offsets[records]]
        if not len(found):
            raise UserError(
                f'{self.directory} has {len(records)} clips in its "{self.split}" split, but none has a caption: build '
                "it with --captions FILE"
            )
        return found

    def _num_frames(self, records: np.ndarray) -> np.ndarray:
        """Frames that are looked at."""
        return np.minimum(self.reader.index.frames[records].astype(np.int64), self.captioned.canvas[0])

    def _cut(self, number: int, crop: Crop, rng: np.random.Generator) -> Shown:
        """The whole clip: nothing of it is drawn."""
        with self._lock:
            if number in self._shown:
                return self._shown[number]
            record = self.reader.read(number)
        shown = Shown(decode_spread(record, crop), record.captions)
        if self._keeps_decoded:
            self._shown[number] = shown
        return shown


def decode_spread(record: ClipRecord, canvas: Crop) -> Video:
    """Frames evenly spread over a clip, at most the canvas's, and shrunk to fit it; one at a time in full size."""
    count = min(record.num_frames, canvas[0])
    rate = count / record.duration_s
    part = dataclasses.replace(record, end_s=record.start_s + count / rate, num_frames=count)
    frames = [shrink(frame, canvas[1:]) for frame in itertools.islice(iterate_record(part, rate), count)]
    if len(frames) < count:
        raise UserError(f"{record.clip_id} decodes to {len(frames)} frames, {count} were expected")
    return np.stack(frames)


def spread(frames: Video, canvas: Crop) -> UInt8[np.ndarray, "_ _ _ 3"]:
    """What `decode_spread` gives for frames that are decoded already."""
    count = min(len(frames), canvas[0])
    places = np.floor(np.arange(count) * len(frames) / count + 0.25).astype(int)  # the decoder's tolerance, too
    return np.stack([shrink(frames[i], canvas[1:]) for i in places])


def shrink(frame: UInt8[np.ndarray, "Y X 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "Y2 X2 3"]:
    """The whole frame within (height, width), in proportion; as it is if it fits."""
    scale = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    if scale >= 1:
        return frame
    height, width = (max(1, round(n * scale)) for n in frame.shape[:2])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def on_canvas(frames: Video, canvas: Crop) -> UInt8[np.ndarray, "_ _ _ 3"]:
    """At its beginning, top and left; zero elsewhere."""
    return np.pad(frames, [*((0, n - m) for n, m in zip(canvas, frames.shape[:3], strict=True)), (0, 0)])
