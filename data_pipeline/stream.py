"""The diffusion stream: latent shards to batches of packed rows.

    step ─► Plan.row(step, row) ─► records ─► normalise, cut, draw masks ─► pack_row ─► [B, …] arrays

`LatentSource[step]` is a pure function of (data fingerprint, seed, step): a host asks for its rows, a restart for its
step, and neither changes what a row holds.
"""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.caption_features import CaptionFeatures
from data_pipeline.errors import UserError
from data_pipeline.known_masks import KnownProbabilities, draw_known
from data_pipeline.packing import Row, RowLayout, SampleInput, pack_row, row_spec, stack_rows
from data_pipeline.permutation import hash_u64, key_from
from data_pipeline.plan import PackingConfig, Placement, Plan
from data_pipeline.prefetch import Batch, Stream, make_stream
from data_pipeline.records import LatentRecord
from data_pipeline.shards import Manifest, ShardReader
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.unreadable import Unreadable

__all__ = ["LatentSource", "Stream", "StreamConfig", "make_stream", "spec"]


@dataclass(frozen=True)
class StreamConfig:
    """Rows and what is drawn into them. The packing fields are those of `PackingConfig`.

    `reference_latent_rate`: latent frames per unit of the temporal position per second. `caption_dropout`: how often
    a caption is replaced by the empty one. `known`: how often which tokens are held clean. `text_features`: rows bring
    the features of captions that `encode` has cached.
    """

    row_tokens: int
    row_text: int
    row_segments: int
    batch_rows: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    reference_latent_rate: float = 6.0
    durations: str = "full"
    min_frames: int = 1
    image_fraction: float = 0.0
    window_steps: int = 0
    max_caption_tokens: int = 0
    caption_weights: dict[str, float] = field(default_factory=dict)
    caption_dropout: float = 0.1
    known: KnownProbabilities = field(default_factory=KnownProbabilities)
    text_features: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.packing  # noqa: B018 - its checks are ours
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(f"caption_dropout is {self.caption_dropout}, but must be between 0 and 1")
        if self.reference_latent_rate <= 0:
            raise UserError(f"reference_latent_rate is {self.reference_latent_rate}, but must be above 0")

    @property
    def packing(self) -> PackingConfig:
        names = PackingConfig.__dataclass_fields__
        return PackingConfig(**{name: getattr(self, name) for name in names})

    def layout(self, channels: int, text_width: int = 0) -> RowLayout:
        """The row's static shape for latents of `channels` channels, and cached features of `text_width` values."""
        shape = self.row_tokens, self.row_text, self.row_segments, self.patch_size
        return RowLayout(*shape, channels, self.reference_latent_rate, text_width)


def spec(
    cfg: StreamConfig, channels: int, num_rows: int | None = None, text_width: int = 0
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape, dtype) of a batch of `num_rows` rows (default: the global batch)."""
    rows, layout = cfg.batch_rows if num_rows is None else num_rows, cfg.layout(channels, text_width)
    arrays = {name: ((rows, *shape), dtype) for name, (shape, dtype) in row_spec(layout).items()}
    return {**arrays, "num_unreadable": ((), np.dtype(np.int32))}


class LatentSource:
    """`source[step]`: this host's rows `[lo, hi)` of a step's batch (`spec`). Picklable; safe in threads.

    A later `stage` of a run draws otherwise from the same data. An unreadable record leaves its segment out, is logged
    once and counted in `num_unreadable`. Raises UserError on construction for a directory without latents, a tokenizer
    or latents that are not the data set's, an empty split, or rows that no clip fits.
    """

    def __init__(
        self, directory: Path | str, cfg: StreamConfig, split: str = "train", rows: tuple[int, int] | None = None,
        clips_per_window: int | None = None, stage: int = 0,
    ):  # fmt: skip
        lo, hi = rows or (0, cfg.batch_rows)
        if not 0 <= lo < hi <= cfg.batch_rows:
            raise UserError(f"rows [{lo}, {hi}) are not rows of a batch of {cfg.batch_rows}")
        self.directory, self.cfg, self.split, self.rows = Path(directory), cfg, split, (lo, hi)
        self.reader = ShardReader(directory, kind="latent")
        manifest = self.reader.manifest
        self.tokenizer = load_tokenizer(self.directory, manifest)
        self.channels = int(manifest.metadata["channels"])
        self._features = None
        if cfg.text_features:
            limit = cfg.packing.caption_limit
            self._features = CaptionFeatures(self.directory, manifest, self.reader.index, limit)
        self.layout = cfg.layout(self.channels, self.text_width)
        self._mean = np.asarray(manifest.metadata["latent_mean"], np.float32)
        self._inverse_std = 1.0 / np.asarray(manifest.metadata["latent_std"], np.float32)
        if self._mean.shape != (self.channels,) or not np.isfinite(self._inverse_std).all():
            raise UserError(f"{directory}: latent_mean/latent_std do not suit {self.channels} channels: encode again")
        self.stage = stage
        fingerprint = plan_fingerprint(manifest, stage)
        self.plan = Plan(self.reader.index, cfg.packing, cfg.seed, fingerprint, split, clips_per_window)
        self._key = key_from("stream", fingerprint, cfg.seed, split)
        self._lock = threading.Lock()
        self._unreadable = Unreadable(self.directory)

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers open the data themselves; only what took a scan to find travels."""
        return LatentSource, (
            self.directory, self.cfg, self.split, self.rows, self.plan.clips_per_window, self.stage
        )  # fmt: skip

    def __getitem__(self, step: int) -> Batch:
        """Arrays of this host's rows at `step`."""
        rows, num_unreadable = [], 0
        for number in range(*self.rows):
            row, failures = self.row(int(step), number)
            rows.append(row)
            num_unreadable += failures
        return {**stack_rows(rows), "num_unreadable": np.asarray(num_unreadable, np.int32)}

    @property
    def text_width(self) -> int:
        """Of the cached features; 0 where rows bring none."""
        return 0 if self._features is None else self._features.manifest.width

    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> (shape, dtype) of this host's batches."""
        return spec(self.cfg, self.channels, self.rows[1] - self.rows[0], self.text_width)

    def row(self, step: int, number: int) -> tuple[Row, int]:
        """(arrays of global row `number` of `step`, how many of its samples could not be read)."""
        with self._lock:
            placements = self.plan.row(step, number)
        samples = []
        for segment, placement in enumerate(placements):
            sample = self._sample(placement, (step, number, segment))
            if sample is not None:
                samples.append(sample)
        return pack_row(samples, self.layout), len(placements) - len(samples)

    def _sample(self, placement: Placement, counters: tuple[int, int, int]) -> SampleInput | None:
        """One segment's sample, or None when its record, or what encoded its caption, is unreadable."""
        rng = np.random.Generator(np.random.Philox(key=[self._key, int(hash_u64(self._key, *counters))]))
        dropped = rng.random() < self.cfg.caption_dropout
        read = self._read(placement.record, -1 if dropped else placement.caption)
        if read is None:
            return None
        record, text, features = read
        latents = record.latent_array()[: placement.frames].astype(np.float32)
        return SampleInput(
            shape=latents.shape[:3],
            fps=record.fps,
            temporal_compression=record.temporal_compression,
            text_ids=self.tokenizer.caption_ids(text, self.cfg.packing.caption_limit),
            text_features=features,
            latents=(latents - self._mean) * self._inverse_std,
            known=draw_known(rng, self.layout.grid(latents.shape), self.cfg.known),
            sample_id=placement.record,
        )

    def _read(self, number: int, caption: int) -> tuple[LatentRecord, str, np.ndarray | None] | None:
        """A record, the text of one of its captions (-1: the empty one) and the features of that, if rows bring them;
        None when any is unreadable. Raises UserError for a foreign autoencoder's."""
        try:
            with self._lock:
                record = self.reader.read(number)
                text = "" if caption < 0 else record.captions[caption].text
                features = None if self._features is None else self._features.read(text)
            self._check(record, number)
        except UserError as error:
            self._unreadable.count(number, error)
            return None
        self._unreadable.count(number, None)
        expected = self.reader.manifest.metadata["autoencoder_fingerprint"]
        if record.autoencoder_fingerprint != expected:
            raise UserError(
                f"{self.directory}: record {number} was encoded by autoencoder {record.autoencoder_fingerprint[:12]}, "
                f"the data set by {expected[:12]}: encode all of it again with one autoencoder"
            )
        return record, text, features

    def _check(self, record: LatentRecord, number: int) -> None:
        """Raises UserError for latents that are not what the index says, so that the plan's row would not hold."""
        index = self.reader.index
        shape = (int(index.frames[number]), int(index.height[number]), int(index.width[number]), self.channels)
        if tuple(record.shape) != shape:
            raise UserError(f"record {number} has latents of shape {record.shape}, the index says {shape}")
        if not np.isfinite(record.latent_array().astype(np.float32)).all():
            raise UserError(f"record {number} has latents that are not finite")


def plan_fingerprint(manifest: Manifest, stage: int) -> str:
    """What a stage's draws depend on beside the seed: the data, and from the second stage on which stage it is."""
    return f"{manifest.fingerprint} {stage}" if stage else manifest.fingerprint


def load_tokenizer(directory: Path, manifest: Manifest) -> Tokenizer:
    """The data set's tokenizer. Raises UserError when the file is not the one that counted the captions."""
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    expected = manifest.tokenizer_fingerprint
    if tokenizer.fingerprint != expected:
        raise UserError(
            f"{directory}: tokenizer.model is {tokenizer.fingerprint[:12]}, but the captions were counted with "
            f"{str(expected)[:12]}: restore that file or build the data set again"
        )
    return tokenizer
