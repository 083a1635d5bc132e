"""Ends a run that no longer moves, with every thread's stack, instead of letting it hold its machines for nothing.

The loop says what it does; a thread looks at the clock. Steps have a limit that follows their own length; what has no
regular length (compiling, restoring, saving, evaluating, previews) has `SLOW_PHASE_S`.
"""

import collections
import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from sora_jax.training.peers import EXIT_HOST_LOST, watched

SLOW_PHASE_S = 1800.0
RECENT_STEPS, LONGEST_STEPS = 100, 10


class Watchdog:
    """Watches the loop while it is entered. `hang_timeout_s` = 0 watches nothing."""

    def __init__(self, workdir: Path, hang_timeout_s: float, slow_phase_s: float = SLOW_PHASE_S) -> None:
        self._path = workdir / f"hang_{jax.process_index()}.txt"
        self._hang_timeout_s, self._slow_phase_s = hang_timeout_s, slow_phase_s
        self._step, self._phase, self._doing, self._moved = 0, "start", "start", time.monotonic()
        self._lengths: collections.deque[float] = collections.deque([0.0], maxlen=RECENT_STEPS)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._tell("start")
        peers = watched()
        if peers is not None:
            peers.dump = self.dump
        if self._hang_timeout_s:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        peers = watched()
        if peers is not None:
            peers.dump = None

    def step(self, step: int) -> None:
        """A step was dispatched: the run moves."""
        if self._phase == "step":
            self._lengths.append(time.monotonic() - self._moved)
        self._step = step
        self._tell("step")

    @contextlib.contextmanager
    def slow(self, phase: str) -> Iterator[None]:
        """While it is entered the run does something that has no regular length."""
        before = self._phase
        self._tell(phase)
        yield
        self._tell(before)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Names a part of a phase for whoever asks where the run hangs; its time is the phase's."""
        self._publish(what)
        yield
        self._publish(self._phase)

    @property
    def allowance_s(self) -> float:
        """How long what the run does now may take."""
        if self._phase != "step":
            return self._slow_phase_s
        return max(self._hang_timeout_s, LONGEST_STEPS * max(self._lengths))

    def dump(self) -> None:
        """Every thread's stack, to stderr and to RUN/hang_PROCESS.txt."""
        faulthandler.dump_traceback(sys.__stderr__)
        with contextlib.suppress(OSError), self._path.open("w") as file:
            faulthandler.dump_traceback(file)

    def _tell(self, phase: str) -> None:
        self._phase, self._moved = phase, time.monotonic()
        self._publish(phase)

    def _publish(self, doing: str) -> None:
        self._doing = doing
        peers = watched()
        if peers is not None:
            peers.tell(self._step, doing)

    def _watch(self) -> None:
        period_s = min(1.0, self._hang_timeout_s / 4)
        looked = time.monotonic()
        while not self._closed.wait(period_s):
            now = time.monotonic()
            if now - looked > 5 * period_s + 1.0:
                self._moved += now - looked  # this process was stopped itself (SIGSTOP), and did not hang
            looked = now
            if now - self._moved > self.allowance_s:
                self._end(now - self._moved)

    def _end(self, seconds: float) -> None:
        reason = f"no progress for {seconds:.0f} s in '{self._doing}' after step {self._step}; stacks in {self._path}"
        self.dump()
        peers = watched()
        if peers is not None:
            peers.fail(EXIT_HOST_LOST, f"{reason}. Last heard: {peers.describe()}")
        print(f"sora-jax: {reason}", file=sys.stderr, flush=True)
        os._exit(EXIT_HOST_LOST)
