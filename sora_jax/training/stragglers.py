"""What each process costs a run: its memory, and which of them the others wait for.

All devices end a step together, so a slow host shows in what it does itself: `host_seconds` is how long a step kept the
host from waiting for its devices. The sign of life of each process carries it. A slow *device* looks the same from all
hosts: that takes a trace (`trace.py`).
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping

import jax
import psutil

from sora_jax.training.peers import watched

GIB = 2**30
TOLD = {"host_seconds": "host_seconds", "rss_gib": "host_memory_gib", "device_gib": "device_memory_gib"}
"""What a process tells the others of itself, and what its own row calls that."""
MEMORY_EVERY_S = 10.0
"""Looking for the workers reads a file of every process of the machine."""
SLOWER, SHARE = 2.0, 0.2
"""A straggler takes so many times what the middle process takes, and at least this share of a step."""


def memory() -> dict[str, float]:
    """GiB in use: by this process with its loader's workers, and by its fullest device where it says so."""
    process = psutil.Process()
    found = {"host_memory_gib": sum(map(_resident_bytes, (process, *process.children(recursive=True)))) / GIB}
    stats = [s for s in (device.memory_stats() for device in jax.local_devices()) if s]
    for name, key in (("device_memory_gib", "bytes_in_use"), ("device_memory_peak_gib", "peak_bytes_in_use")):
        if stats and all(key in s for s in stats):
            found[name] = max(s[key] for s in stats) / GIB
    return found


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # a worker that has just ended
        return 0


class Stragglers:
    """Compares the processes of a run, on process 0; with one process there is nothing to compare. `say` is told who
    holds the run back, once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._named, self._measured = say, -1, -math.inf

    def facts(self, row: Mapping[str, float]) -> dict[str, float]:
        """What a window's row is to say of the processes: who is slowest, and now and then the memory."""
        now = time.monotonic()
        if now - self._measured < MEMORY_EVERY_S:
            return self.compare(row)
        self._measured = now
        found = memory()
        if (peers := watched()) is not None:
            peers.note(**{told: found[name] for told, name in TOLD.items() if name in found})
        return {**self.compare(row), **found}

    def hosts(self) -> dict[str, float]:
        """What each process has told last, a second or two ago: `host_seconds/I`, `rss_gib/I`, `device_gib/I`. Nothing
        where there is one process, or of what a process does not know."""
        peers = watched()
        if peers is None or jax.process_count() == 1:
            return {}
        signs = sorted(peers.signs.items())
        return {f"{name}/{i}": sign[name] for name in TOLD for i, sign in signs if name in sign}

    def compare(self, row: Mapping[str, float]) -> dict[str, float]:
        """Tells the others this process's share of a window; returns whose is the largest, as numbers of the row."""
        peers = watched()
        if peers is None or "host_seconds" not in row:
            return {}
        peers.note(host_seconds=row["host_seconds"])
        told = {i: sign["host_seconds"] for i, sign in peers.signs.items() if "host_seconds" in sign}
        if jax.process_index() != 0 or len(told) < 2:
            return {}
        slowest, middle_s = find_slowest(told)
        if is_straggler(told[slowest], middle_s, row["step_seconds"]):
            if slowest != self._named:
                host = peers.signs[slowest]["host"]
                self._say(
                    f"process {slowest} on {host} holds the others back: {told[slowest]:.3f} s of its own a step, the "
                    f"middle one {middle_s:.3f} s, of steps of {row['step_seconds']:.3f} s"
                )
            self._named = slowest
        else:
            self._named = -1
        return {"slowest_process": float(slowest), "slowest_host_seconds": told[slowest]}


def find_slowest(told: Mapping[int, float]) -> tuple[int, float]:
    """(the process with the most seconds, the median of all others)."""
    slowest = max(told, key=lambda i: told[i])
    return slowest, statistics.median(seconds for i, seconds in told.items() if i != slowest)


def is_straggler(seconds: float, middle_s: float, step_s: float) -> bool:
    """Whether a process with so many seconds of its own a step holds the run back."""
    return seconds > SLOWER * middle_s and seconds > SHARE * step_s
