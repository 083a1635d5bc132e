"""One start of a run under storm: its processes on this machine, what they have reached, and how they ended.

A storm watches a run from outside, by what it writes: a step is reached when `metrics.jsonl` has its row. A resumed
run replaces that file before its first step, so a row belongs to this start only if the file is not the one that was
there before.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sora_jax
from sora_jax.evaluation.storm_link import Link
from sora_jax.training.checkpoint import CHECKPOINTS, committed_steps
from sora_jax.training.metrics import METRICS

COORDINATOR, NUM_PROCESSES, PROCESS_ID = "SORA_COORDINATOR", "SORA_NUM_PROCESSES", "SORA_PROCESS_ID"
TAIL_BYTES = 1 << 16
POLL_S = 0.03
CONTINUING = re.compile(r"continuing .* from step (\d+)")


class Attempt:
    """The processes of one start. Leaving the context kills those that are still there."""

    def __init__(
        self, words: Sequence[str], run_dir: Path, log: Path, devices: int, num_processes: int = 1,
        link: Link | None = None,
    ) -> None:  # fmt: skip
        """`words` is the verb with its options. The `devices` fake devices are shared out among the processes; process
        i writes stdout and stderr to `log` with the ending `.i.log`."""
        self.run_dir = run_dir
        self.logs = [log.with_name(f"{log.name}.{i}.log") for i in range(num_processes)]
        self.newest_before = self.newest_seen = newest_step(run_dir)
        self.first_step_s: float | None = None
        self._metrics_before = _identity(run_dir / METRICS)
        self._started = time.monotonic()
        together = _together(num_processes, devices, link)
        self.processes: list[subprocess.Popen[bytes]] = []
        for i, path in enumerate(self.logs):
            command = [sys.executable, "-m", "sora_jax.commands.main", *words]
            with path.open("wb") as file:
                process = subprocess.Popen(
                    link.inside(i, command) if link else command,
                    env={**together, PROCESS_ID: str(i)},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            self.processes.append(process)

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    @property
    def is_running(self) -> bool:
        """Whether every process is still there."""
        return all(process.poll() is None for process in self.processes)

    def look(self) -> int:
        """The newest step that this start has logged, 0 before its first; notes what was committed meanwhile."""
        self.newest_seen = max(self.newest_seen, newest_step(self.run_dir))
        path = self.run_dir / METRICS
        if _identity(path) in (None, self._metrics_before):
            return 0
        step = _last_step(path)
        if step <= self.newest_before:
            return 0
        if self.first_step_s is None:
            self.first_step_s = time.monotonic() - self._started
        return step

    def wait_until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Waits until `condition` holds, or a process has ended, or the time is up. Returns whether it holds."""
        deadline = time.monotonic() + limit_s
        while self.is_running and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(POLL_S)
        return False

    def is_saving(self) -> bool:
        """Whether a checkpoint newer than all committed ones is being written, or was when its writer was killed."""
        newest, folder = newest_step(self.run_dir), self.run_dir / CHECKPOINTS
        names = [path.name.partition(".") for path in folder.iterdir()] if folder.is_dir() else []
        return any(step.isdigit() and int(step) > newest and ending for step, ending, _ in names)

    def wait(self, limit_s: float) -> float:
        """Waits until all have ended, at most `limit_s`, then kills the rest. Returns the seconds that it took."""
        begun = time.monotonic()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, begun + limit_s - time.monotonic()))
        seconds = time.monotonic() - begun
        self.__exit__()
        self.newest_seen = max(self.newest_seen, newest_step(self.run_dir))
        return seconds

    def codes(self) -> list[int | None]:
        """The exit code of each process (minus the signal that killed it), None while it runs."""
        return [process.poll() for process in self.processes]

    def resumed_from(self) -> int | None:
        """The step that process 0 says it continues from; 0 for a fresh start; None if it did not come that far."""
        found = CONTINUING.search(self.logs[0].read_text(errors="replace"))
        if found:
            return int(found.group(1))
        return 0 if self.newest_before == 0 and self.first_step_s is not None else None

    def last_words(self) -> str:
        """The last line of each process's log."""
        lines = [path.read_text(errors="replace").strip().splitlines()[-1:] for path in self.logs]
        return " | ".join(line[0][:300] for line in lines if line)


def newest_step(run_dir: Path) -> int:
    """The newest committed step of a run, 0 if there is none."""
    return (committed_steps(run_dir / CHECKPOINTS) or [0])[-1]


def _together(num_processes: int, devices: int, link: Link | None) -> dict[str, str]:
    """The environment of every process: where the others are, and its share of the devices."""
    root = str(Path(sora_jax.__file__).parents[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    host = link.addresses[0] if link else "127.0.0.1"
    return {
        **kept,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # a restart should find everything compiled
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])]),
        "XLA_FLAGS": f"{kept.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices // num_processes}",
        COORDINATOR: f"{host}:{_free_port()}",
        NUM_PROCESSES: str(num_processes),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _identity(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _last_step(path: Path) -> int:
    """The step of the last whole line of a metrics file; 0 if there is none, or none as short as what is read."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except ValueError:
        return 0
