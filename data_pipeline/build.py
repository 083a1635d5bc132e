"""A folder of videos and images to clip shards: `sora-jax data build`.

Two steps. *Ingest*, parallel over inputs: each verdict (`ingest.py`) is staged in `DIR/.staging` (`staging.py`), so
that a killed build continues. *Assemble*, in one process and in sorted order: groups,
split, tokenizer, captions, shards. The second step is a pure function of the first, so the shards are the same bytes
whatever happened on the way. `DIR/inputs.jsonl` says what became of every input, `DIR/rejected.jsonl` why not.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error
from data_pipeline.ingest import Clip, Verdict
from data_pipeline.records import Caption, ClipRecord
from data_pipeline.shards import Manifest, ShardWriter
from data_pipeline.staging import file_checksum, load_verdict, stage_all
from data_pipeline.tokenizer import SMALLEST_VOCAB, Tokenizer
from data_pipeline.walk import (
    DROID_GROUP,
    CaptionLine,
    count_unmatched,
    find_inputs,
    group_of,
    group_pattern,
    heldout_groups,
    printable,
    read_captions,
)

BUILD_VERSION = 2  # part of every key: raise it when the same input gives other clips


@dataclass(frozen=True)
class BuildConfig:
    """Options that decide what is in the shards; a finished data set is only reused for equal ones."""

    heldout_fraction: float = 0.05
    group_regex: str = DROID_GROUP
    max_seconds: float = 20.0
    records_per_shard: int = 1024
    vocab_size: int = 8192
    license: str = "unknown"

    def check(self) -> None:
        if not 0 <= self.heldout_fraction < 1:
            raise UserError(f"heldout_fraction={self.heldout_fraction} must be at least 0 and below 1")
        if not 0 < self.max_seconds < math.inf:
            raise UserError(f"max_seconds={self.max_seconds} must be above 0 and finite")
        if self.records_per_shard < 1:
            raise UserError(f"records_per_shard={self.records_per_shard} must be at least 1")
        if self.vocab_size < SMALLEST_VOCAB:
            raise UserError(f"vocab_size={self.vocab_size} must be at least {SMALLEST_VOCAB}: bytes and a few letters")
        group_pattern(self.group_regex)


@dataclass(frozen=True)
class Input:
    """A file and its verdict, which stays on disk until it is looked at: there may be millions."""

    path: str
    staged: Path
    lines: tuple[CaptionLine, ...]
    group: str

    def verdict(self) -> Verdict:
        return load_verdict(self.staged)


def build(
    videos: Path | str,
    out: Path | str,
    config: BuildConfig,
    captions: Path | str | None = None,
    tokenizer: Path | str | None = None,
    workers: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Builds the data set and returns its counts. Calls `on_progress(inputs done, inputs)`.

    Raises `UserError` for bad options, an empty folder, no usable input at all, a full disk, or if DIR holds a
    finished data set of other inputs or options.
    """
    videos, out = Path(videos), Path(out)
    config.check()
    if out.resolve() == videos.resolve():
        raise UserError(f"--out and --videos are both {out}: choose another folder for the data set")
    paths = find_inputs(videos, exclude=out)
    lines = read_captions(None if captions is None else Path(captions), videos)
    loaded = None if tokenizer is None else Tokenizer.load(tokenizer)
    unmatched = count_unmatched(lines, paths, videos)
    try:
        if (out / "manifest.json").exists():
            manifest = _finished(videos, out, paths, lines, config, loaded, workers)
        else:
            with alone_in(out):
                staged = stage_all(
                    videos, out / ".staging", paths, BUILD_VERSION, config.max_seconds, workers, on_progress
                )
                pattern = group_pattern(config.group_regex)
                inputs = [
                    Input(path, staged[path], tuple(own := lines.get(path, [])), group_of(path, own, pattern))
                    for path in paths
                ]
                manifest = _assemble(videos, out, inputs, config, loaded)
                shutil.rmtree(out / ".staging", ignore_errors=True)
    except OSError as error:
        raise from_os_error(error, f"building {out}") from error
    return {
        "inputs": manifest.metadata["inputs"],
        "clips": sum(manifest.counts.values()),
        "rejected": manifest.metadata["rejected"],
        "train": manifest.counts["train"],
        "heldout": manifest.counts["heldout"],
        "hours": round(manifest.durations_s["total"] / 3600, 4),
        "captions": manifest.num_captions,
        "captions_unmatched": unmatched,
        "fingerprint": manifest.fingerprint,
    }


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Locks the folder against a second build; the lock ends with the process."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another build writes into {out}: wait for it, or choose another --out") from error
        yield
    finally:
        os.close(descriptor)


def _finished(
    videos: Path,
    out: Path,
    paths: list[str],
    lines: dict[str, list[CaptionLine]],
    config: BuildConfig,
    tokenizer: Tokenizer | None,
    workers: int,
) -> Manifest:
    """The manifest of a finished data set, if it was built from the same; only checksums are read."""
    manifest = Manifest.load(out)
    version = manifest.metadata.get("build_version", 1)
    if version != BUILD_VERSION:
        raise UserError(
            f"{out} was built by version {version} of the build, this is {BUILD_VERSION}: train on it as it is, or "
            "choose another --out"
        )
    built, asked = manifest.metadata.get("options", {}), asdict(config)
    if built != asked:
        other = {name: (built.get(name), value) for name, value in asked.items() if built.get(name) != value}
        raise UserError(f"{out} was built with other options, (there, asked for): {other}: choose another --out")
    with ThreadPoolExecutor(workers) as pool:
        checksums = pool.map(lambda path: file_checksum(videos / path), paths)
        key = _build_key(dict(zip(paths, checksums, strict=True)), lines, config, tokenizer)
    if manifest.metadata.get("build_key") != key:
        raise UserError(f"{out} holds a data set of other inputs or captions: choose another --out or delete it")
    return manifest


def _assemble(
    videos: Path,
    out: Path,
    inputs: list[Input],
    config: BuildConfig,
    tokenizer: Tokenizer | None,
) -> Manifest:
    """Shards from verdicts, one in memory at a time."""
    checksums, usable = {}, []
    for item in inputs:
        verdict = item.verdict()
        checksums[item.path] = verdict.checksum
        usable += [item] if verdict.clips else []
    held = heldout_groups({item.group for item in usable}, config.heldout_fraction)
    _write_outcomes(out, inputs, held)
    if not usable:
        raise UserError(f"none of the {len(inputs)} inputs in {videos} is usable: {out}/rejected.jsonl says why")
    metadata = {
        "build_key": _build_key(checksums, {item.path: list(item.lines) for item in inputs}, config, tokenizer),
        "build_version": BUILD_VERSION,
        "options": asdict(config),
        "inputs": len(inputs),
        "rejected": len(inputs) - len(usable),
    }
    if tokenizer is None:
        texts = (line.text for item in usable if item.group not in held for line in item.lines)
        tokenizer = Tokenizer.train(texts, config.vocab_size)
    writer = ShardWriter(out, "clip", config.records_per_shard, tokenizer, metadata)
    for item in usable:
        split = "heldout" if item.group in held else "train"
        for clip in item.verdict().clips:
            video = _video(videos / item.path, clip, checksums[item.path])
            writer.write(_record(item, clip, video, split, config, tokenizer))
    return writer.finish()


def _build_key(
    checksums: dict[str, str], lines: dict[str, list[CaptionLine]], config: BuildConfig, tokenizer: Tokenizer | None
) -> str:
    """What decides the shards: contents by path, captions, options and a given tokenizer."""
    parts = [
        [printable(p), digest, [asdict(line) for line in lines.get(p, [])]] for p, digest in sorted(checksums.items())
    ]
    fingerprint = None if tokenizer is None else tokenizer.fingerprint
    return hashlib.sha256(json.dumps([BUILD_VERSION, asdict(config), fingerprint, parts]).encode()).hexdigest()


def _video(path: Path, clip: Clip, checksum: str) -> bytes:
    """The clip's bytes. Raises `UserError` if the source has changed since it was judged."""
    if clip.video is not None:
        return clip.video.read_bytes()
    video = path.read_bytes()
    if hashlib.sha256(video).hexdigest() != checksum:
        raise UserError(f"{path} changed during the build: run it again")
    return video


def _record(item: Input, clip: Clip, video: bytes, split: str, config: BuildConfig, tokenizer: Tokenizer) -> ClipRecord:
    return ClipRecord(
        clip_id=printable(item.path) + clip.suffix,
        source_id=printable(item.path),
        group_id=item.group,
        split=split,
        video=video,
        media_type=clip.media_type,
        start_s=0.0,
        end_s=clip.num_frames / clip.fps,
        fps=clip.fps,
        num_frames=clip.num_frames,
        height=clip.height,
        width=clip.width,
        crop=(0, 0, clip.height, clip.width),
        colour=clip.colour,
        license=next((line.license for line in item.lines if line.license), config.license),
        checksum=hashlib.sha256(video).hexdigest(),
        captions=tuple(
            Caption(line.text, line.source, line.language, tokenizer.num_tokens(line.text))
            for line in item.lines
            if line.text
        ),
        scores=clip.scores,
    )


def _write_outcomes(out: Path, inputs: list[Input], held: set[str]) -> None:
    """`inputs.jsonl`: a line an input; `rejected.jsonl`: path and reason of those without a clip."""
    names = ("inputs.jsonl", "rejected.jsonl")
    with (out / f".{names[0]}.part").open("w") as outcomes, (out / f".{names[1]}.part").open("w") as rejected:
        for item in inputs:
            verdict = item.verdict()
            print(json.dumps(_outcome(item, verdict, held), ensure_ascii=False), file=outcomes)
            if verdict.rejected:
                line = {"path": printable(item.path), "reason": verdict.rejected}
                print(json.dumps(line, ensure_ascii=False), file=rejected)
    for name in names:
        (out / f".{name}.part").replace(out / name)


def _outcome(item: Input, verdict: Verdict, held: set[str]) -> dict[str, Any]:
    path = printable(item.path)
    if verdict.rejected:
        return {"path": path, "outcome": "rejected", "why": verdict.rejected}
    first = verdict.clips[0]
    return {
        "path": path,
        "outcome": "kept" if first.video is None else "encoded again",
        "split": "heldout" if item.group in held else "train",
        "clips": len(verdict.clips),
        "frames": sum(clip.num_frames for clip in verdict.clips),
        "size": f"{first.width}x{first.height}",
        "fps": round(first.fps, 3),
        "why": "; ".join(verdict.notes) or "plays as it is",
    }
