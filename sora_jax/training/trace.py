"""A profile of a run that is under way: a process that gets SIGUSR1 traces its next steps into `RUN/traces/`.

    kill -USR1 PID        # or, for every task of a Slurm job: scancel --signal=USR1 JOB

The trace begins with the next step and ends when `config.train.trace_steps` of them have ended. A failure to trace is
logged and never ends the run.
"""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

TRACES = "traces"

logger = logging.getLogger(__name__)


class Tracer:
    """While it is entered SIGUSR1 asks for a trace; outside the main thread signals cannot be caught, and none is."""

    def __init__(self, workdir: Path, num_steps: int) -> None:
        self._folder, self._num_steps = workdir / TRACES, num_steps
        self._is_asked, self._until = False, 0
        self._path: Path | None = None
        self._previous: Any = None

    def __enter__(self) -> "Tracer":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
        if self._path is not None:
            self._stop("when the run ended")

    def is_due(self, settled_step: int) -> bool:
        """Whether `turn` has something to do."""
        return settled_step >= self._until if self._path is not None else self._is_asked

    def turn(self, step: int, settled_step: int, say: Callable[[str], None]) -> None:
        """Begins or ends a trace: `step` was dispatched last, `settled_step` has ended."""
        if self._path is None:
            self._start(step, say)
        elif settled_step >= self._until:
            path = self._path
            if self._stop(f"after step {settled_step}"):
                say(f"traced the steps up to {settled_step}: {path}")

    def _ask(self, number: int, frame: Any) -> None:
        self._is_asked = True

    def _start(self, step: int, say: Callable[[str], None]) -> None:
        self._is_asked = False
        path = self._folder / f"step_{step + 1}_process_{jax.process_index()}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(path)
        except Exception as error:
            logger.warning("no trace of the steps after %d: %s", step, error)
            return
        self._path, self._until = path, step + self._num_steps
        say(f"tracing steps {step + 1} to {self._until} into {path}")

    def _stop(self, when: str) -> bool:
        """Writes the trace. False if that failed."""
        self._path = None
        try:
            jax.profiler.stop_trace()
        except Exception as error:
            logger.warning("the trace that ended %s could not be written: %s", when, error)
            return False
        return True
