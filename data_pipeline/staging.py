"""Verdicts on disk: every input judged once, in parallel, whatever happens to the processes that do it.

A verdict is a file under `DIR/.staging`, named by a hash of the path, the content and the options, so that a killed
build continues; the clips that were encoded again lie beside it. None of them is kept in memory.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import msgpack

from data_pipeline.ingest import REENCODED, Verdict, ingest, verdict_from_plain, verdict_to_plain
from data_pipeline.walk import printable

logger = logging.getLogger(__name__)


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

    After a crash the files that may have been in flight (the pool queues one more than it runs) get a process each.
    `version` is that of the build: another one judges anew.
    """
    staging.mkdir(parents=True, exist_ok=True)
    staged: dict[str, Path] = {}
    left = list(paths)
    while left:
        for path, verdict in _stage_in_pool(videos, staging, left, version, max_seconds, workers):
            staged[path] = verdict
            on_progress(len(staged), len(paths))
        left = [path for path in left if path not in staged]
        for path in left[: 2 * workers + 1]:
            logger.warning("a process died: %s runs on its own", path)
            alone = dict(_stage_in_pool(videos, staging, [path], version, max_seconds, 1))
            staged[path] = alone.get(path) or _crashed(staging, path)
            on_progress(len(staged), len(paths))
        left = [path for path in left if path not in staged]
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


def _stage_in_pool(
    videos: Path, staging: Path, paths: list[str], version: int, max_seconds: float, workers: int
) -> Iterator[tuple[str, Path]]:
    """Verdicts as they come; stops where a process dies."""
    with ProcessPoolExecutor(max(1, min(workers, len(paths))), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_stage, videos, staging, path, version, max_seconds): path for path in paths}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                return


def _stage(videos: Path, staging: Path, path: str, version: int, max_seconds: float) -> Path:
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
