"""A profile of a run that is under way: a process that gets SIGUSR1 traces its next steps into `RUN/traces/`.

    kill -USR1 PID        # or, for every task of a Slurm job: scancel --signal=USR1 JOB

The loader's workers, which `scancel` signals too, ignore it (`Tracer.deaf`).

The trace begins with the next step and ends when `config.train.trace_steps` of them have ended. A failure to trace is
logged and never ends the run.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
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
        self._writer: threading.Thread | None = None

    def __enter__(self) -> "Tracer":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
        if self._writer is not None:
            self._writer.join()
        if self._path is not None:  # the run ends within a trace
            self._write(self._path, self._until, logger.info)

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """While it is entered SIGUSR1 is ignored; by processes that are started meanwhile, for good."""
        if self._previous is None:
            yield
            return
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGUSR1, self._ask)

    def is_due(self, settled_step: int) -> bool:
        """Whether `turn` has something to do. A trace that is still being written comes before the next one."""
        if self._path is not None:
            return settled_step >= self._until
        return self._is_asked and (self._writer is None or not self._writer.is_alive())

    def turn(self, step: int, settled_step: int, say: Callable[[str], None]) -> None:
        """Begins or ends a trace: `step` was dispatched last, `settled_step` has ended."""
        if self._path is None:
            self._start(step, say)
        elif settled_step >= self._until:
            path, self._path = self._path, None
            # In the background: other processes wait for this one's steps, and would take a long silence for a hang.
            self._writer = threading.Thread(target=self._write, args=(path, settled_step, say), name="trace")
            self._writer.start()

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

    def _write(self, path: Path, settled_step: int, say: Callable[[str], None]) -> None:
        try:
            jax.profiler.stop_trace()
        except Exception as error:
            logger.warning("the trace up to step %d could not be written: %s", settled_step, error)
        else:
            say(f"traced the steps up to {settled_step}: {path}")
