"""Where a run's time went: `ledger.jsonl`, one line at each change of what the run does, and what the lines add up to.

A line is a mark: from its time on the run does `kind`, until the next mark. So every second has exactly one kind, and
the parts add up to the wall time whatever happened. A mark is one `write` of one line: a kill leaves whole lines. While
steps run, a mark now and then says how far they are; what a killed process did after its last mark nobody knows, and it
counts as `down`, with the gap until the next process.

Steps that a later process had to do again are known only then: reading the marks moves their time from `productive` to
`repeated`. This is the goodput of a run as Google defines it (productive time over wall time), kept in the run itself.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error

LEDGER = "ledger.jsonl"
KINDS = {
    "productive": "steps whose result the run still has",
    "input_wait": "steps: the devices had nothing to do until the next batch came",
    "compilation": "the first step of each shape, compilation included",
    "save": "steps stood still for a checkpoint",
    "evaluation": "held-out loss",
    "preview": "samples for people",
    "trace": "beginning and writing a profile of a few steps",
    "start": "imports, devices, the other processes, the data's plan",
    "restore": "reading a checkpoint, or drawing the first parameters",
    "stop": "after the last step of a process",
    "repeated": "steps after the last checkpoint, done again after a restart",
    "rolled_back": "steps that a roll-back undid",
    "down": "from the last sign of a process to the next process",
}
"""What a second can be, with a word on each; `sora-jax goodput` prints them in this order."""
TRAIN, END, FINISHED = "train", "end", "finished"

logger = logging.getLogger(__name__)


def process_started() -> float:
    """Unix time when this process was started; where the system does not say, now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()
    return time.time() - max(0.0, age_s)


class Ledger:
    """The ledger of the run in `workdir` (None: of a process that does not write one), open while it is entered.

    `started` is the Unix time from which on this process has been starting. Raises UserError if it cannot be written.
    """

    def __init__(self, workdir: Path | None, started: float) -> None:
        self._path, self._file = workdir / LEDGER if workdir else None, -1
        self._clock = time.time() - time.monotonic()  # a clock that is set meanwhile makes no time
        self._started, self._written = started, 0.0
        self._kind, self._step, self._waited_s = "start", 0, 0.0

    def __enter__(self) -> "Ledger":
        if self._path is not None:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
                size = os.fstat(self._file).st_size
                if size and os.pread(self._file, 1, size - 1) != b"\n":  # a full disk, or a power cut
                    os.write(self._file, b"\n")
            except OSError as error:
                raise from_os_error(error, f"opening {self._path}") from error
        self._write(self._started, "start", host=socket.gethostname(), pid=os.getpid())
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is not None:
            self.enter(END, status=kind.__name__)
        if self._file >= 0:
            os.close(self._file)

    def enter(self, kind: str, **facts: Any) -> None:
        """From now on the run does `kind`: one of KINDS, "train" or "end"."""
        self._kind = kind
        self._write(time.monotonic() + self._clock, kind, **facts)

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """While it is entered the run does `kind`; afterwards what it did before."""
        before = self._kind
        self.enter(kind)
        yield
        self.enter(before)

    def restore(self, step: int, rollback: bool = False) -> None:
        """The state after `step` is read, or (0) drawn: whatever was trained after it is undone."""
        self._step = step
        self.enter("restore", **({"rollback": True} if rollback else {}))

    def train_from(self, step: int) -> None:
        """Steps begin, or go on, after `step`."""
        self._step = step
        self.enter(TRAIN)

    def beat(self, step: int, waited_s: float) -> None:
        """Steps run: `step` is the last that ended, `waited_s` how long devices have waited for data in this process.

        Writes a mark once a second at first, once a minute in a process that is days old: a kill is dated to 0.1 %.
        """
        self._step, self._waited_s = step, waited_s
        now = time.monotonic() + self._clock
        if self._kind == TRAIN and now - self._written >= min(60.0, max(1.0, (now - self._started) / 1000)):
            self.enter(TRAIN)

    def _write(self, when: float, kind: str, **facts: Any) -> None:
        self._written = when
        if self._file < 0:
            return
        row = {"time": round(when, 3), "kind": kind, "step": self._step, "waited_s": round(self._waited_s, 3), **facts}
        try:
            os.write(self._file, (json.dumps(row) + "\n").encode())
        except OSError as error:
            raise from_os_error(error, f"writing {self._path}") from error


def read_ledger(run_dir: str | Path) -> list[dict[str, Any]]:
    """The marks of a run, oldest first; lines that a full disk or a power cut tore are left out.

    Raises UserError where there is no ledger.
    """
    path = Path(run_dir) / LEDGER
    if not path.exists():
        raise UserError(f"there is no ledger at {path}; name the --workdir of a run that has been trained")
    marks = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            mark = json.loads(line)
            marks.append({**mark, "time": float(mark["time"]), "step": int(mark["step"])})
        except (ValueError, TypeError, KeyError):
            if line:
                logger.warning("%s has a torn line, left out: %.40s", path, line)
    return marks


@dataclass
class Account:
    """What the marks of a run add up to."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    """kind -> seconds"""
    num_starts: int = 0
    num_rollbacks: int = 0
    steps: int = 0
    """the last step that ended and was not undone"""
    steps_repeated: int = 0
    """at least so many were done again after a restart"""
    idle_s: float = 0.0
    """between a run that was finished and its extension: part of no kind, nor of the wall time"""
    wall_s: float = 0.0
    """from the first mark to the last by their own times; less than the kinds together where a clock was set back"""

    @property
    def goodput(self) -> float:
        return self.seconds["productive"] / self.wall_s if self.wall_s else 0.0


@dataclass
class _Stretch:
    """Productive seconds in which the run came from step `first` to `last`."""

    first: int
    last: int
    seconds: float

    def undo(self, step: int) -> float:
        """Takes out, and returns, the seconds that belong to steps after `step`."""
        if self.first >= step:
            share = 1.0
        else:
            share = max(0, self.last - step) / max(1, self.last - self.first)
        lost = share * self.seconds
        self.first, self.last, self.seconds = min(self.first, step), min(self.last, step), self.seconds - lost
        return lost


def add_up(marks: Sequence[dict[str, Any]]) -> Account:
    """Each second of a run from its first mark to its last, by kind."""
    account, stretches, owed_s = Account(), [], 0.0
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        kind, step = mark["kind"], mark["step"]
        if kind == "start":
            account.num_starts += 1
            owed_s = 0.0
        if kind == "restore":
            undone = "rolled_back" if mark.get("rollback") else "repeated"
            account.num_rollbacks += undone == "rolled_back"
            account.steps_repeated += max(0, account.steps - step) if undone == "repeated" else 0
            account.seconds[undone] += sum(stretch.undo(step) for stretch in stretches)
            stretches = [s for s in stretches if s.seconds > 0]
        account.steps = step if kind != "start" else account.steps
        if following is None:
            break
        seconds = max(0.0, following["time"] - mark["time"])
        if following["kind"] == "start":
            if mark.get("status") == FINISHED:
                account.idle_s += seconds
            else:
                account.seconds["down"] += seconds
        elif kind == TRAIN:
            owed_s += following["waited_s"] - mark["waited_s"]
            waited_s = min(owed_s, seconds)
            owed_s -= waited_s
            account.seconds["input_wait"] += waited_s
            stretches.append(_Stretch(step, following["step"], seconds - waited_s))
        elif kind in account.seconds:
            account.seconds[kind] += seconds
    account.seconds["productive"] = sum(s.seconds for s in stretches)
    account.wall_s = marks[-1]["time"] - marks[0]["time"] - account.idle_s if marks else 0.0
    return account
