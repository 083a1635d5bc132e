"""Asking a run to stop: SIGTERM (preemption) and SIGINT (Ctrl-C) save a checkpoint and end the run between steps."""

import logging
import signal
import threading
from typing import Any

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
