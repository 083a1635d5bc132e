"""Verdicts on disk: every input judged once, in parallel, whatever happens to the processes that do it.

A verdict is a file under `DIR/.staging`, named by a hash of the path, the content and the options, so that a killed
build continues; the clips that were encoded again lie beside it. None of them is kept in memory.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgpack

from data_pipeline.engines import Died, LocalEngine
from data_pipeline.ingest import REENCODED, Verdict, ingest, verdict_from_plain, verdict_to_plain
from data_pipeline.walk import printable


def stage_all(
    videos: Path,
    staging: Path,
    paths: list[str],
    version: int,
    max_seconds: float,
    workers: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, Path]:
    """The staged verdict on every path. A decoder that crashes its process costs only the file that made it crash.

    `version` is that of the build: another one judges anew.
    """
    staging.mkdir(parents=True, exist_ok=True)
    staged: dict[str, Path] = {}
    task = partial(_stage, videos, staging, version, max_seconds)
    for place, result in LocalEngine(workers).map(task, paths):
        path = paths[place]
        staged[path] = _crashed(staging, path) if isinstance(result, Died) else result
        on_progress(len(staged), len(paths))
    return staged


def load_verdict(staged: Path) -> Verdict:
    return verdict_from_plain(msgpack.unpackb(staged.read_bytes()), staged.parent)


def file_checksum(path: Path) -> str:
    """sha256 of a regular file that can be read, else ""."""
    if not path.is_file():  # a dangling link; a pipe would block for ever
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _stage(videos: Path, staging: Path, version: int, max_seconds: float, path: str) -> Path:
    """Ingests one input unless an earlier run has; returns the staged verdict's file."""
    checksum = file_checksum(videos / path)
    key = json.dumps([version, REENCODED, printable(path), checksum, max_seconds])
    staged = staging / hashlib.sha256(key.encode()).hexdigest()
    if not staged.exists():
        _write(staged, ingest(videos / path, max_seconds, staged))
    return staged


def _crashed(staging: Path, path: str) -> Path:
    """A verdict of this run only: another run has another memory, perhaps, and tries again."""
    staged = staging / f"{hashlib.sha256(printable(path).encode()).hexdigest()}.crashed"
    _write(staged, Verdict("", rejected="it crashes the decoder"))
    return staged


def _write(staged: Path, verdict: Verdict) -> None:
    partial_path = staged.with_suffix(".part")
    partial_path.write_bytes(msgpack.packb(verdict_to_plain(verdict)))
    partial_path.replace(staged)
