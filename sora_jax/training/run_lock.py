"""One run directory, one run: `RUN/run.lock` names its owner, and the owner's thread touches it every few seconds.

A second run fails at once. A lock whose owner is gone is taken over: on the same machine when its process does not
live any more, from elsewhere (a requeued job, a new pod) when nobody has touched the file for `STALE_S`. Only the
file's own time is read, and only compared with itself: hosts' clocks may differ. A run that finds its lock in other
hands (it was frozen for longer than that) ends at once, before it could write into another's run.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import EXIT_USER_ERROR, SystemFailure, UserError, from_os_error
from sora_jax.training.peers import watched

LOCK, GUARD = "run.lock", "run.lock.guard"
HEARTBEAT_S, STALE_S = 5.0, 20.0
JOB = "SLURM_JOB_ID"
"""Stays the same when a job is requeued."""

logger = logging.getLogger(__name__)


class RunLock:
    """Owns the run directory while it is entered. Entering raises UserError when another run owns it."""

    def __init__(self, run_dir: Path, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self._path, self._heartbeat_s, self._stale_s = run_dir / LOCK, heartbeat_s, stale_s
        self._owner = {
            **_machine(),
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "token": uuid.uuid4().hex,
            "job": os.environ.get(JOB, ""),
        }
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="run-lock")

    def __enter__(self) -> "RunLock":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._try_to_take():
                pass
        except OSError as error:
            raise from_os_error(error, f"locking the run {self._path.parent}") from error
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError), _guard(self._path):
            if _read(self._path).get("token") == self._owner["token"]:
                self._path.unlink()

    def _try_to_take(self) -> bool:
        """Takes the lock if it is free, or its owner is gone. Raises UserError if the owner lives."""
        owner, touched = _look(self._path)
        if owner is not None:
            self._check_gone(owner, touched)
        with _guard(self._path):
            if _look(self._path) != (owner, touched):  # another one was quicker, or the owner lives after all
                return False
            temporary = self._path.with_name(f"{LOCK}.{self._owner['token']}")
            try:
                temporary.write_text(json.dumps(self._owner) + "\n")
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)  # of a full disk
        if owner is not None:
            logger.info("took over the run from %s, which is gone", _name(owner))
        return True

    def _check_gone(self, owner: dict[str, Any], touched: float) -> None:
        if {name: owner.get(name) for name in _machine()} == _machine():
            if _start_time(owner["pid"]) != owner["started"]:
                return
            raise self._taken(owner, "runs")
        begun = time.monotonic()
        logger.info(
            "the run was last trained by %s; waiting up to %.0f s to see whether it lives", _name(owner), self._stale_s
        )
        while time.monotonic() - begun < self._stale_s:
            time.sleep(min(0.5, self._heartbeat_s / 4))
            if _look(self._path)[0] is None:
                return
            if _look(self._path) != (owner, touched):
                raise self._taken(owner, f"touched its lock {time.monotonic() - begun:.0f} s after this process came")

    def _taken(self, owner: dict[str, Any], why: str) -> UserError:
        if self._owner["job"] and owner.get("job") == self._owner["job"]:  # its node's daemon died, and it did not
            return SystemFailure(
                f"the run {self._path.parent} is still being trained by {_name(owner)}, an earlier start of this job "
                f"{self._owner['job']}, which {why}; run again when it has ended"
            )
        return UserError(
            f"the run {self._path.parent} is being trained by {_name(owner)}, which {why}; stop it first, or choose "
            "another --workdir"
        )

    def _beat(self) -> None:
        while not self._closed.wait(self._heartbeat_s):
            try:
                owner = _read(self._path)
                if owner.get("token") == self._owner["token"]:
                    os.utime(self._path)
                    continue
            except FileNotFoundError:
                owner = {}
            except OSError as error:  # a file server that is away for a moment: the next beat will tell
                logger.warning("%s cannot be touched: %s", self._path, error)
                continue
            self._lost(owner)

    def _lost(self, owner: dict[str, Any]) -> None:
        by = f"was taken over by {_name(owner)}" if owner else "was deleted"
        reason = f"error: the lock {self._path} {by} while this process ran: it ends, so that two do not write one run"
        peers = watched()
        if peers is not None:
            peers.fail(EXIT_USER_ERROR, reason)
        print(f"sora-jax: {reason}", file=sys.stderr, flush=True)
        os._exit(EXIT_USER_ERROR)


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[None]:
    """One at a time may change the lock file, where the file system has locks; where not, heartbeats must do."""
    with path.with_name(GUARD).open("a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _look(path: Path) -> tuple[dict[str, Any] | None, float]:
    """(owner, when it touched the file last); no owner where there is no file."""
    try:
        return _read(path), path.stat().st_mtime
    except FileNotFoundError:
        return None, 0.0


def _read(path: Path) -> dict[str, Any]:
    """The owner that the file names; one that nobody can name is on no known machine."""
    try:
        owner = json.loads(path.read_text())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}"


def _machine() -> dict[str, str]:
    """Where a process's number means something: this host, since its start, in this container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "namespace": os.readlink(namespace) if namespace.exists() else "",
    }


def _start_time(pid: int) -> str | None:
    """When process `pid` of this machine started, as a number that a later process of that number has not; None if
    there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]
