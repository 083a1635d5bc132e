"""Metrics: measured on the device, read late, written to JSONL and TensorBoard.

A step returns one small array. The meter reads it when the step is `IN_FLIGHT` steps old, so that the device always
has work queued and the host never runs away from it; a window of `log_every` steps becomes one row. Rates count the
time of training alone: evaluation, previews and the first step (which compiles) stop the clock.
"""

import collections
import contextlib
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tensorboardX import SummaryWriter

from data_pipeline.errors import from_os_error
from sora_jax.flops import PEAK_BF16_FLOPS, measured_matmul_peak
from sora_jax.training.step import StepMetrics
from sora_jax.training.wandb_log import WandbLog
from sora_jax.types import Sums

IN_FLIGHT = 2
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
COUNTERS = ("skipped", "skipped_total", "nonfinite_in_a_row")

logger = logging.getLogger(__name__)


class Work(NamedTuple):
    """What one batch of this host holds: useful FLOPs, live units of all `capacity` (tokens, frames or rows), and how
    many of its clips could not be read."""

    unit: str
    live: int
    capacity: int
    flops: float
    unreadable: int = 0


def count_work(batch: Mapping[str, np.ndarray], flops: float) -> Work:
    """Counts the live tokens of packed rows, the frames of videos, else the rows."""
    unreadable = int(batch.get("num_unreadable", 0))
    if "segment_ids" in batch:
        ids = batch["segment_ids"]
        return Work("tokens", int(np.count_nonzero(ids)), ids.size, flops, unreadable)
    if "video" in batch:
        rows, frames = batch["video"].shape[:2]
        return Work("frames", rows * frames, rows * frames, flops, unreadable)
    rows = next(iter(batch.values())).shape[0]
    return Work("rows", rows, rows, flops, unreadable)


def peak_flops(devices: Iterable[Any]) -> float:
    """FLOP/s of all devices together: data sheet where it is known, else a matrix product timed now."""
    devices = list(devices)
    kind = devices[0].device_kind
    if kind in PEAK_BF16_FLOPS:
        return PEAK_BF16_FLOPS[kind] * len(devices)
    on_cpu = devices[0].platform == "cpu"
    peak = measured_matmul_peak("float32" if on_cpu else "bfloat16", 1024, 10) * (1 if on_cpu else len(devices))
    logger.info("MFU is against a measured matrix product: %.3g TFLOP/s (no data sheet for '%s')", peak / 1e12, kind)
    return peak


class _InFlight(NamedTuple):
    """A step that was dispatched and not read yet."""

    step: int
    metrics: StepMetrics
    work: Work
    on_the_clock: bool
    """whether it counts for the rates"""
    waited_s: float
    """how long the devices had nothing to do until its batch came"""
    ended: Future[float]
    """when its result was there, by `time.perf_counter`"""


class Meter:
    """Reads each step's metrics a little late and turns windows of `log_every` steps into rows.

    A thread notes when each step ends on the device, whenever it is read. The clock runs between `start` and `pause`;
    only steps dispatched meanwhile count for the rates. `window` is what `Meter.window` was when a checkpoint was
    made: the row that was not full then is the same as without the interruption, but for its rates.
    """

    def __init__(
        self, log_every: int, num_steps: int, peak: float, num_hosts: int = 1, window: Mapping[str, Any] | None = None
    ) -> None:
        self._log_every, self._num_steps, self._peak, self._num_hosts = log_every, num_steps, peak, num_hosts
        self._in_flight: collections.deque[_InFlight] = collections.deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="meter")
        self._last: Future[float] | None = None
        window = window or {"values": [], "unreadable": 0}
        self._values = [np.array(values, np.float32) for values in window["values"]]  # None is NaN
        self._work: list[Work] = []
        self._seconds, self._row_waited_s, self._blocked_s = 0.0, 0.0, 0.0
        self._unreadable: int = window["unreadable"]
        self._next_waited_s = 0.0
        self._is_running = False
        self._counted_to = self._carried_s = 0.0
        self._ended: list[tuple[int, dict[str, float]]] = []
        self.settled_step = 0
        self.nonfinite_in_a_row = 0
        self.step_seconds = math.nan
        self.waited_s = 0.0
        """how long, in all, the devices had nothing to do until a batch came"""

    def start(self) -> None:
        """Starts the clock of the rates."""
        self._is_running = True
        self._counted_to = time.perf_counter() - self._carried_s

    def pause(self) -> list[tuple[int, dict[str, float]]]:
        """Waits for every step under way and stops the clock. Returns the rows that became due."""
        rows = self.settle(keep=0)
        if self._is_running:
            self._carried_s = time.perf_counter() - self._counted_to  # since the last step: the next one's
        self._is_running = False
        return rows

    @property
    def num_in_flight(self) -> int:
        """Steps that were dispatched and not read yet."""
        return len(self._in_flight)

    @property
    def window(self) -> dict[str, Any]:
        """The row that is not full yet: `values [steps, metrics, 2]` (sum and weight; None where they are not finite)
        and the `unreadable` clips."""
        values = [[[_number(x) for x in pair] for pair in step.tolist()] for step in self._values]
        return {"values": values, "unreadable": self._unreadable}

    def take_steps(self) -> list[tuple[int, dict[str, float]]]:
        """(step, its own metrics by name) of the steps that were read since the last call."""
        taken, self._ended = self._ended, []
        return taken

    def close(self) -> None:
        """Ends the thread, without waiting for the steps that are still under way."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def waited(self, wait_s: float) -> None:
        """The host just got a batch after `wait_s`; the devices waited with it since the last step ended."""
        if self._last is not None and not self._last.done():
            return
        since = self._last.result() if self._last is not None else -math.inf
        self._next_waited_s = min(wait_s, max(0.0, time.perf_counter() - since))
        self.waited_s += self._next_waited_s

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """While it is entered the host waits for its devices, and so for the slowest of all processes."""
        begun = time.perf_counter()
        yield
        self._blocked_s += time.perf_counter() - begun if self._is_running else 0.0

    def add(self, step: int, metrics: StepMetrics, work: Work) -> None:
        """A step just dispatched."""
        metrics.values.copy_to_host_async()
        self._last = self._thread.submit(_ended, metrics.values)
        self._in_flight.append(_InFlight(step, metrics, work, self._is_running, self._next_waited_s, self._last))
        self._next_waited_s = 0.0

    def settle(self, keep: int = IN_FLIGHT) -> list[tuple[int, dict[str, float]]]:
        """Waits until at most `keep` steps are under way. Returns (step, row) of the windows that they end."""
        rows = []
        while len(self._in_flight) > keep:
            step, metrics, work, on_the_clock, waited_s, ended = self._in_flight.popleft()
            with self.blocked():
                values = np.asarray(metrics.values)
            if self._values and self._values[-1].shape != values.shape:  # another version's metrics
                self._values.clear()
            self._values.append(values)
            self._ended.append(
                (step, {n: _ratio(*pair) for n, pair in zip(metrics.names, values.tolist(), strict=True)})
            )
            self.settled_step = step
            self.nonfinite_in_a_row = int(values[COUNTERS.index("nonfinite_in_a_row"), 0])
            self._unreadable += work.unreadable
            if on_the_clock:
                self._work.append(work)
                self._seconds += ended.result() - self._counted_to
                self._counted_to = ended.result()
                self._row_waited_s += waited_s
            if step % self._log_every == 0 or step == self._num_steps:
                rows.append((step, self._take_row(metrics.names)))
        return rows

    def _take_row(self, names: tuple[str, ...]) -> dict[str, float]:
        row = {**_means(np.stack(self._values), names), "unreadable_clips": float(self._unreadable), **self._rates()}
        self._values, self._work, self._unreadable = [], [], 0
        self._seconds = self._row_waited_s = self._blocked_s = 0.0
        return row

    def _rates(self) -> dict[str, float]:
        if not self._work or self._seconds <= 0:
            return {}
        live, capacity = sum(w.live for w in self._work), sum(w.capacity for w in self._work)
        self.step_seconds = self._seconds / len(self._work)
        return {
            f"{self._work[0].unit}_per_second": self._num_hosts * live / self._seconds,
            "step_seconds": self.step_seconds,
            "host_seconds": max(0.0, self._seconds - self._blocked_s) / len(self._work),
            "padding": 1 - live / max(capacity, 1),
            "data_wait": min(1.0, self._row_waited_s / self._seconds),
            "mfu": self._num_hosts * sum(w.flops for w in self._work) / self._seconds / self._peak,
        }


def _ended(values: jax.Array) -> float:
    jax.block_until_ready(values)
    return time.perf_counter()


def _means(values: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    """Means over the steps that were applied (a skipped one has no numbers); the total of skipped steps so far."""
    totals = values[values[:, COUNTERS.index("skipped"), 0] == 0].astype(np.float64).sum(0)
    row = {n: _ratio(*pair) for n, pair in zip(names, totals, strict=True) if n not in COUNTERS}
    return {**row, "skipped_total": float(values[-1, COUNTERS.index("skipped_total"), 0])}


def mean_of_sums(batches: list[Sums]) -> dict[str, float]:
    """One number a metric from the sums of several batches; waits for them."""
    totals: dict[str, np.ndarray] = {}
    for sums in jax.device_get(batches):
        for name, pair in sums.items():
            totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
    return {name: _ratio(*pair) for name, pair in totals.items()}


def _ratio(total: float, weight: float) -> float:
    return float(total / weight) if weight else math.nan


class MetricsLog:
    """`metrics.jsonl` (one object a row: step, kind, values), TensorBoard and, with `wandb_project`, Weights & Biases.

    Rows after `step` are dropped first.
    """

    def __init__(self, run_dir: Path, step: int, wandb_project: str = "") -> None:
        self._wandb = WandbLog(run_dir, wandb_project) if wandb_project else None
        self._path = run_dir / METRICS
        try:
            _truncate(self._path, step)
            self._file = self._path.open("a")
            self._writer = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=step + 1)
        except OSError as error:
            raise from_os_error(error, f"opening {self._path}") from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._writer.close()
        if self._wandb is not None:
            self._wandb.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Adds a row; numbers that are not finite become null."""
        row = {"step": step, "kind": kind, **{name: _number(value) for name, value in values.items()}}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise from_os_error(error, f"writing {self._path}") from error
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.write(step, kind, values)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a last line torn by a kill is left out."""
    path = Path(run_dir) / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            logger.warning("%s has a torn line, left out: %.40s", path, line)
    return rows


def _truncate(path: Path, step: int) -> None:
    """A resumed run repeats the steps after its checkpoint, and their rows."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
