"""The stream of a whole run: stages one after the other, each with its own rows and its own mixture of data sets.

    step ─► stage ─► row of the stage ─► (data set, row of its plan) by `RowSchedule` ─► `LatentSource.row`

Everything is arithmetic on the step, so a resume at any step, in any stage, is exact, on any number of hosts. Within a
stage each data set has a plan of its own and goes through its own epochs. Steps count from the stage's start; a later
stage draws anew even from the same data set. A run of one stage with one data set is `LatentSource` itself.
"""

import bisect
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.caption_draw import check_names
from data_pipeline.caption_features import FeaturesManifest
from data_pipeline.errors import UserError
from data_pipeline.packing import stack_rows
from data_pipeline.prefetch import Batch
from data_pipeline.row_schedule import RowSchedule
from data_pipeline.shards import Manifest
from data_pipeline.stream import LatentSource, StreamConfig, load_tokenizer, spec
from data_pipeline.tokenizer import Tokenizer

OPEN_STAGES = 2  # steps around a boundary are read at the same time
_SHARED = ("autoencoder_fingerprint", "channels", "latent_mean", "latent_std")
_ENCODE = "encode one of them again with the other's"
_BUILD = (
    "build one of them again with the other's (data build --tokenizer, config.output.tokenizer of data curate) and "
    "encode it"
)


@dataclass(frozen=True)
class Member:
    """A data set of a mixture and its weight among the others: its share of the rows."""

    path: str
    weight: float = 1.0


@dataclass(frozen=True)
class Stage:
    """What a run reads from step `start` on. `reference_tokens` above 0 travels in every batch: the sample size at
    which the stage's noise levels are not shifted."""

    start: int
    members: tuple[Member, ...]
    stream: StreamConfig
    reference_tokens: int = 0


def check_stages(stages: Sequence[Stage]) -> dict[str, Manifest]:
    """The manifests of all data sets of a run, by path.

    Raises UserError for stages that do not follow each other from step 0, a data set that is twice in a mixture, and
    data sets of different autoencoders or tokenizers.
    """
    starts = [stage.start for stage in stages]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise UserError(f"stages start at steps {starts}, but the first must start at 0 and each later than the last")
    for stage in stages:
        paths = [member.path for member in stage.members]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise UserError(
                f"{twice[0]} is {len(twice)} times in the mixture from step {stage.start} on: add up the weights"
            )
    manifests = {member.path: Manifest.load(member.path) for stage in stages for member in stage.members}
    (first, one), *others = manifests.items()
    for path, other in others:
        for name in (*_SHARED, "tokenizer_fingerprint"):
            values = [m.tokenizer_fingerprint if name not in _SHARED else m.metadata.get(name) for m in (one, other)]
            if values[0] != values[1]:
                shown = [value[:12] if isinstance(value, str) else value for value in values]
                raise UserError(
                    f"the data sets of a run must share autoencoder and tokenizer, but {name} is {shown[0]} in {first} "
                    f"and {shown[1]} in {path}: {_ENCODE if name in _SHARED else _BUILD}"
                )
    return manifests


def check_features(stages: Sequence[Stage]) -> FeaturesManifest | None:
    """What encoded the captions whose features the rows of a run bring; None where they bring none.

    Raises UserError where data sets have none, or such of different encoders.
    """
    paths = {member.path for stage in stages if stage.stream.text_features for member in stage.members}
    found = {path: FeaturesManifest.load(Path(path)) for path in sorted(paths)}
    encoders = {manifest.text_encoder_fingerprint: path for path, manifest in found.items()}
    if len(encoders) > 1:
        (one, first), (two, second), *_ = encoders.items()
        raise UserError(
            f"the text features of {first} are of encoder {one[:12]}, those of {second} of {two[:12]}: encode the "
            "captions of one of them again with the other's"
        )
    return next(iter(found.values()), None)


def fingerprint_of(manifests: dict[str, Manifest]) -> str:
    """Of all data that a run reads; of a single data set its own."""
    found = list(dict.fromkeys(manifest.fingerprint for manifest in manifests.values()))
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


@dataclass(frozen=True)
class Mixture:
    """The data sets of one stage, and which row is whose. `first_ids`: what is added to each one's record numbers, so
    that sample ids of a run tell its data sets apart."""

    schedule: RowSchedule
    sources: tuple[LatentSource, ...]
    first_ids: tuple[int, ...]

    def row(self, number: int) -> tuple[dict[str, np.ndarray], int]:
        """(arrays of row `number` of the stage, how many of its samples could not be read)."""
        member, turn = self.schedule.place(number)
        source = self.sources[member]
        row, failures = source.row(*divmod(turn, source.cfg.batch_rows))
        ids = row["sample_ids"]
        return {**row, "sample_ids": np.where(ids < 0, ids, ids + np.int32(self.first_ids[member]))}, failures


class StagedSource:
    """`source[step]`: this host's rows of a step's batch, in any stage. Picklable; safe in threads.

    Every stage's plan is made on construction, so that a run does not find out at step 20,000 that its last stage
    trains on nothing; two stages are held open. Raises UserError as `check_stages` and `LatentSource` do. In the
    held-out split data sets without held-out clips are left out, and a stage may have none.
    """

    scans: tuple[tuple[int, ...], ...] = ()
    """Clips per window of each plan of each stage: what another source of the same stages need not find again. Empty
    until all plans are made."""

    def __init__(
        self, stages: Sequence[Stage], split: str = "train", rows: Sequence[tuple[int, int]] | None = None,
        scans: Sequence[tuple[int, ...]] | None = None,
    ):  # fmt: skip
        self.stages, self.split = tuple(stages), split
        self.rows = tuple(rows or ((0, stage.stream.batch_rows) for stage in stages))
        self.manifests = check_stages(stages)
        self.text_features = check_features(stages)
        self._starts = [stage.start for stage in stages]
        self._lock, self._open = threading.Lock(), OrderedDict[int, Mixture]()
        self.scans = tuple(scans) if scans is not None else self._scan_all()

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers open the data themselves; only what took a scan to find travels."""
        return StagedSource, (self.stages, self.split, self.rows, self.scans)

    def __getitem__(self, step: int) -> Batch:
        """Arrays of this host's rows at `step`."""
        number = self.stage_at(int(step))
        return self.batch(number, int(step) - self._starts[number])

    @property
    def channels(self) -> int:
        """Of the latents."""
        return int(self._shared.metadata["channels"])

    @property
    def autoencoder_fingerprint(self) -> str:
        """What all latents were encoded by."""
        return self._shared.metadata["autoencoder_fingerprint"]

    @property
    def tokenizer(self) -> Tokenizer:
        """What all captions were counted with."""
        return load_tokenizer(Path(next(iter(self.manifests))), self._shared)

    @property
    def _shared(self) -> Manifest:
        return next(iter(self.manifests.values()))

    def stage_at(self, step: int) -> int:
        """The number of the stage that step `step` belongs to."""
        return bisect.bisect_right(self._starts, step) - 1

    def batch(self, number: int, step: int) -> Batch:
        """Arrays of this host's rows at the step `step` of stage `number`."""
        stage, mixture, (lo, hi) = self.stages[number], self.mixture(number), self.rows[number]
        first = step * stage.stream.batch_rows
        rows, failures = zip(*(mixture.row(first + row) for row in range(lo, hi)), strict=True)
        shift = {"reference_tokens": np.asarray(stage.reference_tokens, np.int32)} if stage.reference_tokens else {}
        return {**stack_rows(rows), **shift, "num_unreadable": np.asarray(sum(failures), np.int32)}

    def batches_of_stage(self, step: int, count: int) -> Iterator[Batch]:
        """The first `count` batches of the stage that step `step` belongs to; none if it has no clip of this split."""
        number = self.stage_at(step)
        is_empty = not self.mixture(number).sources
        return (self.batch(number, i) for i in range(0 if is_empty else count))

    def spec(self, number: int = 0) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> (shape, dtype) of this host's batches in stage `number`."""
        lo, hi = self.rows[number]
        shift = {"reference_tokens": ((), np.dtype(np.int32))} if self.stages[number].reference_tokens else {}
        text_width = self.text_features.width if self.text_features else 0
        return {**spec(self.stages[number].stream, self.channels, hi - lo, text_width), **shift}

    def mixture(self, number: int) -> Mixture:
        """The data sets of stage `number`; opened on first use, the least recently used closed."""
        with self._lock:
            if number not in self._open:
                self._open[number] = self._make(number)
                while len(self._open) > OPEN_STAGES:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def _make(self, number: int) -> Mixture:
        stage = self.stages[number]
        members = [member for member in stage.members if self.split == "train" or self._num_clips(member)]
        if not members:
            return Mixture(RowSchedule([1.0]), (), ())
        schedule = RowSchedule([member.weight for member in members])
        sources = tuple(
            LatentSource(member.path, of_share(stage.stream, share), self.split, None, scan, number)
            for member, share, scan in zip(members, schedule.shares, self._scan_of(number, len(members)), strict=True)
        )
        if self.split == "train":  # held-out clips may lack a source that only data sets without them have
            check_names(stage.stream.caption_weights, [source.reader.index for source in sources])
        return Mixture(schedule, sources, tuple(self._first_id(member.path) for member in members))

    def _scan_all(self) -> tuple[tuple[int, ...], ...]:
        """Makes every plan. The first stage is opened last, and so stays open."""
        numbers = reversed(range(len(self.stages)))
        found = [tuple(source.plan.clips_per_window for source in self.mixture(number).sources) for number in numbers]
        return tuple(reversed(found))

    def _scan_of(self, number: int, count: int) -> Sequence[int | None]:
        return self.scans[number] if self.scans else (None,) * count

    def _num_clips(self, member: Member) -> int:
        return self.manifests[member.path].counts[self.split]

    def _first_id(self, path: str) -> int:
        paths = list(self.manifests)
        return sum(sum(self.manifests[before].counts.values()) for before in paths[: paths.index(path)])


def of_share(cfg: StreamConfig, share: Fraction) -> StreamConfig:
    """The plan of a data set with this share of a step's rows: as many of its rows are packed to be of similar cost."""
    return replace(cfg, batch_rows=max(1, round(share * cfg.batch_rows)))
