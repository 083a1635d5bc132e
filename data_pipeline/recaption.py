"""Clips with one more caption each, from a captioner: `sora-jax recaption`.

Two steps. *Caption*: a captioner is shown some frames of every clip that has no caption of its source yet, and what it
says is staged at once (`caption_staging.py`), so that a killed job goes on and asks for no clip again. *Assemble*: the
input's records in their order, each with its caption behind those that it has. The second step is a pure function of
the first, so the shards are the same bytes whatever happened on the way. A clip without an answer keeps its captions,
a damaged record is left out, and `DIR/uncaptioned.jsonl` says which and why.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from data_pipeline.build import alone_in
from data_pipeline.caption_staging import FOLDER, CaptionStaging, differences
from data_pipeline.caption_stream import shrink
from data_pipeline.errors import UserError
from data_pipeline.frames import keep_frames
from data_pipeline.records import Caption, ClipRecord
from data_pipeline.shards import Manifest, ShardReader, ShardWriter
from data_pipeline.stream import load_tokenizer
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.video_io import iterate_record, record_frames

MAX_FAILURES = 20
RECAPTIONED, UNCAPTIONED = "recaptioned", "uncaptioned.jsonl"

logger = logging.getLogger(__name__)


class Refused(UserError):
    """A clip that a captioner says nothing about. The next one may go better."""


@dataclass(frozen=True)
class ClipView:
    """What a captioner sees of a clip: some of its frames, when they are shown in it, and its record."""

    frames: UInt8[np.ndarray, "T Y X 3"]
    times_s: tuple[float, ...]
    record: ClipRecord


class Unseen(NamedTuple):
    """A clip without a new caption, and why."""

    clip_id: str
    reason: str


Describe = Callable[[Sequence[ClipView]], Awaitable[Sequence[str]]]
"""A caption for each clip. Raises `Refused` for all of them, anything else ends the job."""


@dataclass(frozen=True)
class CaptionWriter:
    """Who captions. `open` gives the function while it is entered, `look` says what it sees of a clip; `options` are
    all that decides a caption beside source and language. It is asked for `batch_size` clips at once, `concurrency`
    times at once."""

    source: str
    open: Callable[[], AbstractAsyncContextManager[Describe]]
    look: Callable[[ClipRecord], ClipView]
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    concurrency: int = 1
    language: str = "und"

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise UserError("a caption's source is empty: name who writes it")
        for name, least in dict(batch_size=1, concurrency=1).items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least {least}")


def in_process(
    captions: Callable[[list[np.ndarray]], Sequence[str]], source: str, look: Callable[[ClipRecord], ClipView],
    **fields: Any,
) -> CaptionWriter:  # fmt: skip
    """A captioner from a plain function of this process: frames of several clips → a caption of each. It is called for
    one batch at a time, while the next one is decoded."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Describe]:
        one_at_a_time = asyncio.Lock()

        async def describe(clips: Sequence[ClipView]) -> Sequence[str]:
            async with one_at_a_time:
                return await asyncio.to_thread(captions, [clip.frames for clip in clips])

        yield describe

    return CaptionWriter(source, opened, look, **{"batch_size": 16, "concurrency": 2, **fields})


def recaption(
    data: Path | str,
    out: Path | str,
    captioner: CaptionWriter,
    limit: int | None = None,
    max_failures: int = MAX_FAILURES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes `data` with captions of `captioner` to `out`, of the first `limit` records alone if that is given; returns
    counts. Calls `on_progress(clips done, clips)`.

    Raises `UserError` for data that are no clips, if `out` holds something else, when `max_failures` clips in a row got
    no caption, or when none did.
    """
    data, out, started = Path(data), Path(out), time.monotonic()
    reader = ShardReader(data, kind="clip")
    tokenizer = load_tokenizer(data, reader.manifest)
    if out.resolve() == data.resolve():
        raise UserError(f"--out and --data are both {out}: choose another folder for the data set")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, but must be at least 1")
    options = _options(reader, captioner)
    if (out / "manifest.json").exists():
        return _finished(out, {**options, "limit": limit})
    total = min(reader.num_records(), limit or reader.num_records())
    with alone_in(out), CaptionStaging(out, reader.num_records(), options) as staging:
        job = Job(reader, captioner, staging, total, max_failures, on_progress)
        asyncio.run(job.run())
        job.check_some_captioned()
        manifest = _assemble(job, out, {**options, "limit": limit}, tokenizer)
    shutil.rmtree(out / FOLDER)
    seconds = time.monotonic() - started
    speed = {"seconds": round(seconds, 2), "clips_per_s": round(job.asked / seconds, 3)}
    return {**_counts(manifest, out), "asked": job.asked, "resumed": job.resumed, **speed}


class Job:
    """One pass over the clips, on one event loop: what is counted needs no lock."""

    def __init__(
        self, reader: ShardReader, captioner: CaptionWriter, staging: CaptionStaging, total: int, max_failures: int,
        on_progress: Callable[[int, int], None],
    ):  # fmt: skip
        self.reader, self.captioner, self.staging = reader, captioner, staging
        self.total, self.max_failures, self._on_progress = total, max_failures, on_progress
        self.resumed, self.asked, self.there = len(staging), 0, 0
        self.failures: dict[int, Unseen] = {}
        self._failed_in_a_row, self._reading = 0, threading.Lock()

    async def run(self) -> None:
        """Captions what has no caption yet. Raises `UserError` where that cannot go on; what there is stays staged."""
        missing = (number for number in range(self.total) if number not in self.staging)
        self._tell()
        try:
            async with self.captioner.open() as describe, asyncio.TaskGroup() as group:
                for _ in range(self.captioner.concurrency):
                    group.create_task(self._work(missing, describe))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    def check_some_captioned(self) -> None:
        """Raises `UserError` if no clip has a caption of this captioner, so that there is nothing to write."""
        if self.failures and not len(self.staging) and not self.there:
            raise UserError(f"none of {self.total} clips got a caption: {next(iter(self.failures.values())).reason}")

    async def _work(self, missing: Iterator[int], describe: Describe) -> None:
        while numbers := list(islice(missing, self.captioner.batch_size)):
            shown = await asyncio.to_thread(self._load, numbers)
            clips = {number: clip for number, clip in shown.items() if isinstance(clip, ClipView)}
            self.failures |= {number: clip for number, clip in shown.items() if isinstance(clip, Unseen)}
            self.there += len(numbers) - len(shown)
            if clips:
                await self._describe(clips, describe)
            self._tell()

    def _load(self, numbers: Sequence[int]) -> dict[int, ClipView | Unseen]:
        """The clips that have no caption of this source yet, or why nothing is seen of them; in a thread of its own."""
        found: dict[int, ClipView | Unseen] = {}
        for number in numbers:
            try:
                with self._reading:
                    record = self.reader.read(number)
            except UserError as error:
                found[number] = Unseen(f"record {number}", str(error))
                continue
            if any(caption.source == self.captioner.source for caption in record.captions):
                continue
            try:
                found[number] = self.captioner.look(record)
            except UserError as error:
                found[number] = Unseen(record.clip_id, str(error))
        return found

    async def _describe(self, clips: dict[int, ClipView], describe: Describe) -> None:
        try:
            answers = await describe(list(clips.values()))
        except Refused as refusal:
            answers = [refusal] * len(clips)
        self.asked += len(clips)
        for (number, clip), answer in zip(clips.items(), answers, strict=True):
            text = "" if isinstance(answer, Refused) else " ".join(answer.split())
            if text:
                self.staging.append(number, clip.record.clip_id, text)
                self._failed_in_a_row = 0
            else:
                self._fail(number, clip, str(answer) if isinstance(answer, Refused) else "the answer is empty")

    def _fail(self, number: int, clip: ClipView, reason: str) -> None:
        self.failures[number] = Unseen(clip.record.clip_id, reason)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.max_failures:
            raise UserError(
                f"{self._failed_in_a_row} clips in a row got no caption, the last because {reason}; "
                f"{len(self.staging)} captions are kept, so the same command goes on when that is mended"
            )

    def _tell(self) -> None:
        self._on_progress(len(self.staging) + self.there + len(self.failures), self.total)


def show(record: ClipRecord, num_frames: int = 0, long_side: int = 0) -> ClipView:
    """`num_frames` of a clip (0: all), evenly spaced from its first to its last, shrunk to `long_side` (0: as they
    are). Raises `UserError` if it does not decode."""
    count = record_frames(record)
    places = np.unique(np.linspace(0, count - 1, min(num_frames or count, count)).round().astype(int))
    shown = islice(iterate_record(record), int(places[-1]) + 1)
    chosen = keep_frames(
        shown, places.tolist(), lambda frame: shrink(frame, (long_side, long_side)) if long_side else frame
    )
    if len(chosen) < len(places):
        raise UserError(f"{record.clip_id} breaks off before frame {places[len(chosen)]} of {count}")
    return ClipView(np.stack(list(chosen.values())), tuple((places / record.fps).tolist()), record)


def _options(reader: ShardReader, captioner: CaptionWriter) -> dict[str, Any]:
    """All that decides the captions, as JSON holds it."""
    who = {"source": captioner.source, "language": captioner.language}
    return json.loads(json.dumps({"data_fingerprint": reader.manifest.fingerprint, **who, **captioner.options}))


def _finished(out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a finished data set, if it was written from the same."""
    manifest = Manifest.load(out)
    there = (manifest.metadata.get(RECAPTIONED) or [{}])[-1].get("options", {})
    if other := differences(there, options):
        raise UserError(f"{out} holds a data set of other data or options: {other}; choose another --out")
    shutil.rmtree(out / FOLDER, ignore_errors=True)  # of a job that was killed when all was there
    return {**_counts(manifest, out), "asked": 0, "resumed": 0, "seconds": 0.0, "clips_per_s": 0.0}


def _assemble(job: Job, out: Path, options: Mapping[str, Any], tokenizer: Tokenizer) -> Manifest:
    """Shards as the input's but for damaged records, one in memory at a time; the manifest commits them."""
    reader, manifest = job.reader, job.reader.manifest
    per_shard = max((shard.num_records for shard in manifest.shards), default=1)
    writer = ShardWriter(out, "clip", per_shard, tokenizer, manifest.metadata)
    added, left_out = 0, {}
    for number in range(reader.num_records()):
        try:
            record = reader.read(number)
        except UserError as error:
            left_out[number] = Unseen(f"record {number}", str(error))
            logger.warning("record %d is left out: %s", number, error)
            continue
        text = job.staging.caption(number) if number < job.total else None
        added += text is not None
        writer.write(record if text is None else _with_caption(record, text, job.captioner, tokenizer))
    unseen = sorted((job.failures | left_out).items())
    failures = [{"record": number, "left_out": number in left_out, **clip._asdict()} for number, clip in unseen]
    (out / UNCAPTIONED).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in failures))
    step = {"data_fingerprint": manifest.fingerprint, "options": dict(options), "captions": added}
    step |= {"already_there": job.there, "uncaptioned": len(failures), "left_out": len(left_out)}
    return writer.finish({RECAPTIONED: [*manifest.metadata.get(RECAPTIONED, []), step]})


def _with_caption(record: ClipRecord, text: str, captioner: CaptionWriter, tokenizer: Tokenizer) -> ClipRecord:
    added = Caption(text, captioner.source, captioner.language, tokenizer.num_tokens(text))
    return replace(record, captions=(*record.captions, added))


def _counts(manifest: Manifest, out: Path) -> dict[str, Any]:
    step = manifest.metadata[RECAPTIONED][-1]
    return {
        "clips": sum(manifest.counts.values()),
        **{name: step.get(name, 0) for name in ("captions", "already_there", "uncaptioned", "left_out")},
        "source": step["options"]["source"],
        "out": str(out),
        "fingerprint": manifest.fingerprint,
    }
