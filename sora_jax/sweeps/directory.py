"""A sweep's folder: `sweep.json` says what it is made of, and each member has a run directory of its own in it.

Beside what `train` writes, a member's folder holds `member.json` (every attempt, with its exit code), `train.log` and
`sweep.lock`. Whoever trains a member holds that lock, and so does the `train` process itself: where the driver is
killed and the process lives on, the member stays taken.
"""

import dataclasses
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error
from sora_jax.sweeps.plan import Member, Sweep
from sora_jax.training.checkpoint import CHECKPOINTS, committed_steps
from sora_jax.training.metrics import METRICS
from sora_jax.training.resume import read_starts
from sora_jax.training.run_directory import CONFIG, check_config

MANIFEST, RECORD, LOCK, LOG = "sweep.json", "member.json", "sweep.lock", "train.log"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One start of `train`, in seconds since 1970; without an end for one that is under way, or whose driver died."""

    started: float
    ended: float | None = None
    exit_code: int | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """What became of a member so far. `error` is why it was given up, under these `overrides`."""

    attempts: tuple[Attempt, ...] = ()
    error: str = ""
    overrides: tuple[str, ...] = ()


def newest_step(folder: Path) -> int:
    """The newest committed step in a member's run directory, 0 without any: what outlives its machine."""
    return (committed_steps(folder / CHECKPOINTS) or [0])[-1]


def reached_step(folder: Path) -> int:
    """The step that a member is known to go on from: its newest, or that of its last start.

    With `config.train.fast_dir` the latter may be in the fast tier alone, which the driver need not see.
    """
    last = max((row.get("step", 0) for row in list(read_starts(folder))[-1:]), default=0)
    return max(newest_step(folder), last)


def read_members(out: Path) -> list[Member]:
    """The members of the sweep in `out`. Raises UserError if there is none."""
    manifest = _read(out / MANIFEST)
    if manifest is None:
        raise UserError(f"there is no sweep in {out}: it has no {MANIFEST}; sora-jax sweep run makes one")
    return [_member(entry) for entry in manifest["members"]]


def adopt(sweep: Sweep, out: Path, *, write: bool) -> list[Member]:
    """The members of `sweep` as the folder `out` numbers them; `write` makes it the folder's sweep.

    Members that are known keep their index, so that the tasks of an array under way still mean the same; new ones are
    added behind, and removed ones are reported (their folders stay). Raises UserError for the folder of another sweep,
    and for a member whose run directory was started with another config.
    """
    known = _read(out / MANIFEST) or {"members": [], "removed": [], "overrides": list(sweep.common)}
    members, removed = _number(sweep, known, out)
    for member in members:
        folder = out / member.name
        config = _read(folder / CONFIG) if reached_step(folder) else None
        if config is not None:
            check_config(config, sweep.configs[member.name], folder)
    gone = {entry["name"] for entry in known["members"]} - {m.name for m in members}
    if gone:
        logger.warning("no longer in %s, their folders are kept: %s", sweep.file, ", ".join(sorted(gone)))
    if list(sweep.common) != known["overrides"]:
        logger.warning("for all members: was %s, is %s", known["overrides"] or "nothing", list(sweep.common))
    manifest = {
        "file": sweep.file,
        "base": sweep.base,
        "overrides": list(sweep.common),
        "members": [dataclasses.asdict(m) for m in members],
        "removed": removed,
    }
    if write and json.loads(json.dumps(manifest)) != known:
        _write(out / MANIFEST, manifest)
    return members


def _number(sweep: Sweep, known: Mapping[str, Any], out: Path) -> tuple[list[Member], list[dict[str, Any]]]:
    """(members with their index, entries of removed ones): an index that was given once is never given again."""
    entries = {entry["name"]: entry for entry in (*known["removed"], *known["members"])}
    names = {m.name for m in sweep.members}
    if entries and not names & entries.keys():
        raise UserError(
            f"{out} holds another sweep ({known['file']}): none of its {len(entries)} members is in {sweep.file}; "
            "choose another --out"
        )
    free = max((entry["index"] for entry in entries.values()), default=-1) + 1
    new = [m.name for m in sweep.members if m.name not in entries]
    index = {**{name: entry["index"] for name, entry in entries.items()}, **{n: free + i for i, n in enumerate(new)}}
    members = [dataclasses.replace(m, index=index[m.name]) for m in sweep.members]
    removed = [{"index": e["index"], "name": name} for name, e in entries.items() if name not in names]
    return sorted(members, key=lambda m: m.index), sorted(removed, key=lambda e: e["index"])


def _member(entry: Mapping[str, Any]) -> Member:
    return Member(**{**entry, "overrides": tuple(entry["overrides"])})


def read_record(folder: Path) -> Record:
    """A member's record; an empty one before its first attempt."""
    found = _read(folder / RECORD) or {"attempts": []}
    attempts = tuple(Attempt(**attempt) for attempt in found["attempts"])
    return Record(attempts, found.get("error", ""), tuple(found.get("overrides", ())))


def write_record(folder: Path, record: Record) -> None:
    """Replaces a member's record. Raises UserError for a full disk."""
    _write(folder / RECORD, dataclasses.asdict(record))


def close_open_attempt(record: Record, folder: Path) -> Record:
    """An attempt without an end (it is under way, or its driver was killed) ends with its last row of metrics."""
    if not record.attempts or record.attempts[-1].ended is not None:
        return record
    last, metrics = record.attempts[-1], folder / METRICS
    last_row = metrics.stat().st_mtime if metrics.exists() else 0.0
    closed = dataclasses.replace(last, ended=max(last_row, last.started))
    return dataclasses.replace(record, attempts=(*record.attempts[:-1], closed))


class Taken(Exception):
    """A member that another process holds; the message says which."""


def take(folder: Path) -> int:
    """Takes a member for this process and the children that inherit the descriptor; closing it gives the member back.

    Raises Taken, and UserError where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise from_os_error(error, f"opening {folder}") from error
    for last in (False, True):  # `is_taken` of another process holds the lock for an instant
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if last:
                os.close(lock)
                raise Taken((folder / LOCK).read_text().strip() or "another process") from None
            time.sleep(0.1)
        else:
            break
    sign(lock, os.getpid())
    return lock


def sign(lock: int, process: int) -> None:
    """Says in a lock's file who holds it, for those who find the member taken."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {process} on {socket.gethostname()}\n".encode(), 0)


def is_taken(folder: Path) -> bool:
    """Whether some process trains the member now."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); restore it, or choose another --out") from error


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Tasks of one array may write the same file at once: each by a name of its own."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value, indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
