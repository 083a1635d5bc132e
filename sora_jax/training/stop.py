"""Asking a run to stop: SIGTERM (preemption) and SIGINT (Ctrl-C) save a checkpoint and end the run between steps.

A signal to one of several processes stops all of them, after the same step: each step, every process adds its wish to a
tiny sum over the devices, and reads the outcome of the step before the last, which is the same everywhere.
"""

import collections
import logging
import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: nothing failed, run the same command again to go on."""

logger = logging.getLogger(__name__)


class StopSignal:
    """While it is entered, `requested` names the signal that came. A second SIGINT is a KeyboardInterrupt.

    Slurm sends SIGTERM to every process of a job, and a forwarding shell sends it again: asking twice is asking once.
    Outside the main thread signals cannot be caught, and nothing is.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.requested is not None:
            raise KeyboardInterrupt
        if self.requested is None:
            self.requested = signal.Signals(number).name


class StopAgreement:
    """Whether the run is to stop: alike in every process after the same step. Call `add` once a step."""

    def __init__(self, stop: StopSignal, mesh: Mesh, in_flight: int) -> None:
        self._stop, self._keep = stop, in_flight
        self._is_alone = jax.process_count() == 1
        self._wishes = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._count = jax.jit(lambda wishes: wishes.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._outcomes: collections.deque[jax.Array] = collections.deque()
        self._is_agreed = False

    @property
    def is_agreed(self) -> bool:
        """True once all processes know that one of them was asked to stop."""
        return self._stop.requested is not None if self._is_alone else self._is_agreed

    def add(self) -> None:
        """With the step just dispatched, this process's wish; waits for the outcome `in_flight` steps back."""
        if self._is_alone:
            return
        mine = np.full(len(self._wishes.addressable_devices), self._stop.requested is not None, np.int32)
        wishes = jax.make_array_from_process_local_data(self._wishes, mine, (self._wishes.mesh.size,))
        self._outcomes.append(self._count(wishes))
        if len(self._outcomes) > self._keep:
            self._is_agreed |= bool(self._outcomes.popleft())
