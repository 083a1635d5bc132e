"""Samples into the arrays of one packed row, and back: the one place that knows how tokens lie in a row.

Training (the stream) and sampling (canvases made from prompts) both go through `pack_row`. Segments are contiguous,
numbered 1..G from the left; padding is segment 0. Tokens of a sample lie in raster order (latent frame, row, column),
values within a patch in (frame, row, column, channel) order, channel fastest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Shaped

from data_pipeline.errors import UserError

GROUPS_PER_SEGMENT = 2  # noisy, known

Row = dict[str, np.ndarray]


@dataclass(frozen=True)
class RowLayout:
    """The static shape of a row: L video tokens, S text tokens, G segments, and how a latent becomes tokens.

    `text_width` is E of the features that each text token brings from a frozen encoder; 0: it brings its id alone.
    """

    row_tokens: int
    row_text: int
    row_segments: int
    patch_size: tuple[int, int, int]
    channels: int
    reference_latent_rate: float
    text_width: int = 0

    @property
    def patch_values(self) -> int:
        """P, the values in a patch."""
        return int(np.prod(self.patch_size)) * self.channels

    def grid(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(frames, rows, columns) of tokens of a latent of `shape` (F, H, W, …); an odd edge is cropped."""
        return int(shape[0]), int(shape[1]) // self.patch_size[1], int(shape[2]) // self.patch_size[2]

    def num_tokens(self, shape: Sequence[int]) -> int:
        """Video tokens of a latent of `shape` (F, H, W, …)."""
        return int(np.prod(self.grid(shape)))


@dataclass(frozen=True)
class SampleInput:
    """What goes into one segment.

    `shape`: (F, H, W) of the latent. `latents`: normalised [F, H, W, C], or None for a canvas of zeros (sampling from
    noise). `known`: which tokens [F, rows, columns] are held clean, None for none. `text_ids` end with the
    end-of-text id; `text_features` are those of each id, for a row that has them. Latent frame f lies at
    f * temporal_compression / fps seconds.
    """

    shape: tuple[int, int, int]
    fps: float
    temporal_compression: int
    text_ids: Sequence[int]
    latents: Float[np.ndarray, "F H W C"] | None = None
    known: Bool[np.ndarray, "F rows columns"] | None = None
    text_features: Shaped[np.ndarray, "n E"] | None = None
    sample_id: int = -1


def patchify(latents: Shaped[np.ndarray, "F H W C"], patch_size: tuple[int, int, int]) -> Shaped[np.ndarray, "n P"]:
    """Tokens of a latent in raster order. Sizes that are not multiples of the patch lose their far edge."""
    _, ph, pw = patch_size
    frames, rows, columns, channels = latents.shape[0], latents.shape[1] // ph, latents.shape[2] // pw, latents.shape[3]
    patches = latents[:, : rows * ph, : columns * pw].reshape(frames, rows, ph, columns, pw, channels)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(frames * rows * columns, ph * pw * channels)


def unpatchify(
    tokens: Shaped[np.ndarray, "n P"], shape: Sequence[int], patch_size: tuple[int, int, int]
) -> Shaped[np.ndarray, "F H W C"]:
    """The inverse of `patchify` for a latent of `shape` (F, H, W), without the edge that patchify cropped."""
    _, ph, pw = patch_size
    frames, rows, columns = int(shape[0]), int(shape[1]) // ph, int(shape[2]) // pw
    channels = tokens.shape[1] // (ph * pw)
    patches = tokens.reshape(frames, rows, columns, ph, pw, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(frames, rows * ph, columns * pw, channels)


def unpack_tokens(
    tokens: Shaped[np.ndarray, "L P"], offset: int | np.integer, shape: Sequence[int], patch_size: tuple[int, int, int]
) -> Shaped[np.ndarray, "F H W C"]:
    """The latent of `shape` (F, H, W) whose tokens start at `offset` of a row."""
    count = int(shape[0]) * (int(shape[1]) // patch_size[1]) * (int(shape[2]) // patch_size[2])
    return unpatchify(tokens[offset : offset + count], shape, patch_size)


def segment_offsets(sample_tokens: Int32[np.ndarray, " G"]) -> np.ndarray:
    """Where each segment's tokens start in its row, from the row's `sample_tokens`."""
    return np.concatenate([[0], np.cumsum(sample_tokens)[:-1]])


def token_positions(sample: SampleInput, layout: RowLayout) -> Float32[np.ndarray, "n 3"]:
    """(time in reference latent frames, row, column in latent units) of a sample's tokens, from 0."""
    frames, rows, columns = layout.grid(sample.shape)
    latent_s = sample.temporal_compression / sample.fps
    axes = (
        np.arange(frames) * (latent_s * layout.reference_latent_rate),
        np.arange(rows) * float(layout.patch_size[1]),
        np.arange(columns) * float(layout.patch_size[2]),
    )
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)


def row_spec(layout: RowLayout) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape, dtype) of one row's arrays."""
    tokens, text, segments = layout.row_tokens, layout.row_text, layout.row_segments
    float32, int32 = np.dtype(np.float32), np.dtype(np.int32)
    features = {"text_features": ((text, layout.text_width), np.dtype(ml_dtypes.bfloat16))} if layout.text_width else {}
    return {
        "tokens": ((tokens, layout.patch_values), float32),
        "segment_ids": ((tokens,), int32),
        "positions": ((tokens, 3), float32),
        "text_ids": ((text,), int32),
        "text_segment_ids": ((text,), int32),
        "text_positions": ((text,), int32),
        **features,
        "noise_group_ids": ((tokens,), int32),
        "sample_ids": ((segments,), int32),
        "sample_tokens": ((segments,), int32),
    }


def pack_row(samples: Sequence[SampleInput], layout: RowLayout) -> Row:
    """One row's arrays (`row_spec`) with the samples as segments 1, 2, … in order.

    Raises UserError when they exceed a capacity of the row or a sample contradicts itself.
    """
    _check_capacity(samples, layout)
    row = {name: np.zeros(shape, dtype) for name, (shape, dtype) in row_spec(layout).items()}
    row["sample_ids"][:] = -1
    token = 0
    for segment, sample in enumerate(samples):
        video = slice(token, token := token + layout.num_tokens(sample.shape))
        _place(row, sample, segment, video, layout)
    row |= pack_text([sample.text_ids for sample in samples], layout.row_text)
    if layout.text_width and samples:
        features = np.concatenate([sample.text_features for sample in samples])
        row["text_features"][: len(features)] = features
    return row


def pack_text(captions: Sequence[Sequence[int]], length: int) -> Row:
    """The text arrays of one row (`row_spec`) of `length` text tokens with these captions as segments 1, 2, … in
    order; they must fit."""
    row = {name: np.zeros(length, np.int32) for name in ("text_ids", "text_segment_ids", "text_positions")}
    start = 0
    for segment, ids in enumerate(captions, 1):
        place = slice(start, start := start + len(ids))
        row["text_ids"][place] = ids
        row["text_segment_ids"][place] = segment
        row["text_positions"][place] = np.arange(len(ids))
    return row


def stack_rows(rows: Sequence[Row]) -> Row:
    """Rows as a batch: every array gains a leading dim."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _place(row: Row, sample: SampleInput, segment: int, video: slice, layout: RowLayout) -> None:
    if sample.latents is not None:
        row["tokens"][video] = patchify(sample.latents, layout.patch_size)
    row["segment_ids"][video] = segment + 1
    row["positions"][video] = token_positions(sample, layout)
    row["noise_group_ids"][video] = GROUPS_PER_SEGMENT * segment
    if sample.known is not None:
        row["noise_group_ids"][video] += sample.known.reshape(-1)
    row["sample_ids"][segment] = sample.sample_id
    row["sample_tokens"][segment] = video.stop - video.start


def _check_capacity(samples: Sequence[SampleInput], layout: RowLayout) -> None:
    needs: Mapping[str, tuple[int, int]] = {
        "row_tokens": (sum(layout.num_tokens(sample.shape) for sample in samples), layout.row_tokens),
        "row_text": (sum(len(sample.text_ids) for sample in samples), layout.row_text),
        "row_segments": (len(samples), layout.row_segments),
    }
    for name, (need, have) in needs.items():
        if need > have:
            raise UserError(f"{len(samples)} samples need {need} of {name}, but a row has {have}: raise it or use less")
    for number, sample in enumerate(samples):
        _check_sample(sample, number, layout)


def _check_sample(sample: SampleInput, number: int, layout: RowLayout) -> None:
    grid = layout.grid(sample.shape)
    if min(grid) < 1 or not len(sample.text_ids):
        raise UserError(
            f"sample {number} has {grid} tokens and {len(sample.text_ids)} text tokens: all must be above 0"
        )
    features = None if sample.text_features is None else sample.text_features.shape
    wanted = (len(sample.text_ids), layout.text_width) if layout.text_width else None
    if features != wanted:
        raise UserError(f"sample {number} has text features of shape {features}, but the row holds {wanted} of it")
    if sample.known is not None and sample.known.shape != grid:
        raise UserError(f"sample {number} has a known mask of {sample.known.shape} for {grid} tokens: make them equal")
    expected = (*sample.shape, layout.channels)
    if sample.latents is not None and sample.latents.shape != expected:
        raise UserError(f"sample {number} has latents of shape {sample.latents.shape}, expected {expected}")
