"""The training loop of every task, top to bottom: restore or initialise, then step, log, evaluate, preview, save.

The order of the data, the noise and the schedule are functions of the step, so a checkpoint's step is the whole
position: the same command run again continues, and ends bitwise where an uninterrupted run on the same devices ends.
The host stays at most `metrics.IN_FLIGHT` steps ahead of the device and never waits for the step it just started.
"""

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from data_pipeline.errors import UserError
from sora_jax.config import TrainConfig
from sora_jax.parallel import (
    check_rows,
    make_mesh,
    num_row_groups,
    on_local_devices,
    put_batch,
    put_frozen,
    state_shardings,
)
from sora_jax.training import step as training_step
from sora_jax.training.begin import check_keep_best, restore_or_init
from sora_jax.training.checkpoint import CHECKPOINTS, Checkpoints, committed_steps, describe_run, find_checkpoint
from sora_jax.training.distributed import agreed, barrier, compile_together, is_leader
from sora_jax.training.feed import Feed
from sora_jax.training.ledger import END, FINISHED, Ledger
from sora_jax.training.metrics import IN_FLIGHT, Meter, MetricsLog, mean_of_sums, peak_flops, read_metrics
from sora_jax.training.norms import make_norms
from sora_jax.training.progress import ProgressLine, duration
from sora_jax.training.resume import open_together
from sora_jax.training.run_lock import RunLock
from sora_jax.training.spikes import (
    SKIPPED,
    History,
    Judged,
    RollBack,
    Skip,
    describe,
    place_after,
    plan_rollback,
    read_skips,
    undo,
)
from sora_jax.training.step import TrainState
from sora_jax.training.stop import EXIT_PREEMPTED, StopAgreement, StopSignal
from sora_jax.training.stragglers import Stragglers
from sora_jax.training.tiers import known_steps
from sora_jax.training.trace import Tracer
from sora_jax.training.warm_start import parse_reference
from sora_jax.training.watchdog import Watchdog
from sora_jax.training.xla_options import xla_options
from sora_jax.types import Frozen, Prepared

PREVIEWS = "previews"

logger = logging.getLogger(__name__)


class NotFiniteError(UserError):
    """Too many steps in a row had a loss or gradient that was not finite."""


def train(
    prepared: Prepared,
    workdir: str | Path,
    devices: list[Any] | None = None,
    started: float | None = None,
    from_step: int | None = None,
) -> dict[str, Any]:
    """Trains what is prepared in the run directory `workdir`, from its last checkpoint if it has one, or `from_step`.

    `started` is the Unix time that the ledger counts this start from (default: now). Several processes train one run
    together: all call this within one `distributed.joined`. Returns what the command line prints: status ("finished"
    or "preempted", the latter with its exit code), step, metrics, the checkpoint's path. Raises UserError for bad
    input, a directory in use, a damaged checkpoint, a full disk, and NotFiniteError when steps stop being finite.
    """
    begun, workdir, started = time.perf_counter(), Path(workdir), started or time.time()
    task, config = prepared.task, prepared.train
    mesh = make_mesh(config.mesh, devices)
    for rows in [stage.batch_rows for stage in prepared.stages] or [config.batch_rows]:
        check_rows(mesh, rows, config.microbatches)
    if config.init_from and not known_steps(workdir, config.fast_dir):
        find_checkpoint(*parse_reference(config.init_from))
    training_step.abstract_state(task, config)  # a model that cannot be built fails before anything is written
    if config.keep_best:
        check_keep_best(prepared, mesh)
    description = describe_run(prepared.config, task.fingerprints)
    with RunLock(workdir) if is_leader() else contextlib.nullcontext():
        start = open_together(workdir, description, config.fast_dir, from_step)
        if place_after(read_skips(workdir), start) >= config.num_steps:
            logger.info("%s is finished at step %d; raise config.train.num_steps to go on", workdir, start)
            reached = start
        else:
            reached = train_from(start, prepared, workdir, mesh, description, started)
    return summarise(workdir, config, reached, start, time.perf_counter() - begun)


def train_from(
    start: int, prepared: Prepared, workdir: Path, mesh: Mesh, description: dict[str, Any], started: float
) -> int:
    """Trains from the checkpoint of `start` (0: from nothing), going back and on where the run spikes. Returns the step
    that was saved last."""
    config = prepared.train
    shapes = training_step.abstract_state(prepared.task, config)
    with (
        jax.set_mesh(mesh),
        Ledger(workdir if is_leader() else None, started) as ledger,
        StopSignal() as stop,
        Watchdog(workdir, config.hang_timeout_s) as watchdog,
        Tracer(workdir, config.trace_steps) as tracer,
    ):
        tools = Tools(mesh, state_shardings(shapes, mesh), ledger, stop, watchdog, tracer)
        reached, is_rollback, is_over = start, False, False
        while not is_over:
            try:
                reached, is_over = train_stretch(prepared, workdir, description, tools, reached, is_rollback)
            except RollBack as spike:
                if is_leader():
                    undo(workdir, config.fast_dir, spike.skip)
                barrier("rolled back")
                reached, is_rollback = spike.skip.after, True
        ledger.enter(END, status=FINISHED if reached >= config.num_steps else "preempted")
    return reached


class Tools(NamedTuple):
    """What a process has throughout."""

    mesh: Mesh
    shardings: TrainState
    ledger: Ledger
    stop: StopSignal
    watchdog: Watchdog
    tracer: Tracer


def train_stretch(
    prepared: Prepared, workdir: Path, description: dict[str, Any], tools: Tools, start: int, is_rollback: bool
) -> tuple[int, bool]:
    """Trains from the checkpoint of `start` to the end, or to the next step after which a roll-back left batches out.

    Returns the step that was saved last, and whether this process has done its part. Raises RollBack.
    """
    task, config = prepared.task, prepared.train
    skips = read_skips(workdir)
    begin = place_after(skips, start)
    end = min([config.num_steps, *(skip.after for skip in skips if skip.after > begin)])
    with (
        Checkpoints.of_run(workdir, config, description) as checkpoints,
        MetricsLog(workdir, begin, config.wandb_project) if is_leader() else contextlib.nullcontext() as log,
        ProgressLine(
            task.name, config.num_steps, None if is_leader() else Console(stderr=True, force_terminal=False)
        ) as progress,
    ):
        tools.ledger.restore(start, is_rollback)
        with tools.watchdog.slow("restore"):
            state, data = restore_or_init(prepared, checkpoints, workdir, tools.shardings, start)
        if begin > start:
            logger.info("leaving out the batches of steps %d to %d (%s)", start + 1, begin, workdir / SKIPPED)
            state = training_step.skip_to(state, begin, tools.shardings)
        evaluate = training_step.make_evaluate(task, config, tools.shardings)
        history = History(config, [group.name for group in task.groups], data.get("recent", ()))
        norms, stragglers = make_norms(task, config, tools.shardings), Stragglers(progress.say)
        window = data.get("window") if begin == start else None
        run = Run(
            prepared, workdir, *tools, checkpoints, log, progress, evaluate, norms, stragglers, history, window, skips
        )
        reached = run.advance(state, begin, end)
        with tools.watchdog.slow("last save"), tools.ledger.during("save"):
            checkpoints.wait()
            barrier("saved")
    return reached, reached < end or end == config.num_steps


@dataclasses.dataclass(frozen=True)
class Run:
    """One run's tools, for the loop to read as a story."""

    prepared: Prepared
    workdir: Path
    mesh: Mesh
    shardings: TrainState
    ledger: Ledger
    stop: StopSignal
    watchdog: Watchdog
    tracer: Tracer
    checkpoints: Checkpoints
    log: MetricsLog | None
    """process 0's"""
    progress: ProgressLine
    evaluate: Callable[..., Any]
    norms: Callable[..., dict[str, float]]
    stragglers: Stragglers
    history: History
    window: dict[str, Any] | None
    """what the checkpoint holds of the row of metrics that was not full yet"""
    skips: list[Skip]

    def advance(self, state: TrainState, start: int, end: int) -> int:
        """Trains from step `start` to `end`, or until asked to stop. Returns the step that was saved last."""
        task, config = self.prepared.task, self.prepared.train
        train_step = training_step.make_train_step(task, config, self.shardings)
        logger.info("options of the compiler: %s", xla_options(config.xla) or "its defaults")
        frozen = put_frozen(task.frozen, self.mesh)
        peak = peak_flops(self.mesh.devices.flat)
        meter = Meter(config.log_every, config.num_steps, peak, num_row_groups(self.mesh), self.window)
        feed, agreement = Feed(self.prepared, self.mesh, start), StopAgreement(self.stop, self.mesh, IN_FLIGHT)
        step, compiled = start, set()
        self.ledger.train_from(start)
        try:
            with self.tracer.deaf():  # the loader's workers start with the first batch
                batch = self._take_ahead(feed, agreement, meter)
            while batch is not None:
                step += 1
                known = feed.shapes in compiled
                with (
                    contextlib.nullcontext()
                    if known
                    else self._compiling(meter, max(feed.shapes, key=lambda s: np.prod(s[1])))
                ):
                    limits = self.history.limits(IN_FLIGHT - meter.num_in_flight, self._stage_start(step))
                    if not known:
                        compile_together(train_step, state, frozen, batch, limits)
                    state, step_metrics = train_step(state, frozen, batch, limits)
                    meter.add(step, step_metrics, feed.work)
                    with meter.blocked():
                        agreement.add()
                compiled.add(feed.shapes)
                self.watchdog.step(step)
                ends = step == end or agreement.is_agreed
                batch = None if ends else self._take_ahead(feed, agreement, meter)  # while the device works
                self._report(meter, meter.settle())
                self.checkpoints.raise_failure()
                if _due(step, config.eval_every, config.num_steps):
                    with self._aside(meter, "evaluation"):
                        self._evaluate(step, state, frozen)
                if batch is None or _due(step, config.checkpoint_every, config.num_steps):
                    with self._aside(meter, "save"):
                        self._save(step, state, meter.window, last=batch is None)
                if _due(step, config.preview_every, config.num_steps):  # after the save: a picture risks nothing
                    with self._aside(meter, "preview"):
                        self._preview(step, state, frozen)
                if self.tracer.is_due(meter.settled_step):
                    with self.watchdog.slow("trace"), self.ledger.during("trace"):
                        self.tracer.turn(step, meter.settled_step, self.progress.say)
        finally:
            feed.close()
            meter.close()
        self.ledger.enter("stop")
        return step

    def _stage_start(self, step: int) -> int:
        """The last step before the stage of the data in which `step` is."""
        return max((stage.start for stage in self.prepared.stages if stage.start < step), default=0)

    def _take_ahead(self, feed: Feed, agreement: StopAgreement, meter: Meter) -> dict[str, jax.Array] | None:
        """The next batch, or None when the signal that asks to stop has ended the loader's workers too."""
        try:
            with self.watchdog.doing("data"):
                batch = feed.take()
            meter.waited(feed.wait_s)
            return batch
        except Exception:
            if not agreement.is_agreed:
                raise
            return None

    def _report(self, meter: Meter, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Logs the rows that became due, and stops the run if too many steps in a row were not finite."""
        self.progress.advance(meter.settled_step)
        self.ledger.beat(meter.settled_step, meter.waited_s)
        for step, row in rows:
            self._write(step, "train", {**row, **self.stragglers.facts(row)})
            if hosts := self.stragglers.hosts():
                self._write(step, "hosts", hosts)
            self.progress.row(step, row, meter.step_seconds)
        for step, metrics in meter.take_steps():
            judged = self.history.add(step, metrics)
            if not judged.applied:
                self._note_spike(judged)
        limit, count = self.prepared.train.max_nonfinite_steps, meter.nonfinite_in_a_row
        if 0 < limit <= count:
            before = meter.settled_step - count
            good = [s for s in self.checkpoints.steps if s <= before]
            where = str(self.checkpoints.folder(good[-1])) if good else "none: nothing was saved before them"
            raise NotFiniteError(
                f"the loss or gradient of {count} steps in a row ({before + 1} to {meter.settled_step}) was not finite "
                f"and config.train.max_nonfinite_steps is {limit}; none of them was applied. The last good checkpoint "
                f"is {where}; start from it with --init_from and a lower learning rate, or look at these steps' data"
            )

    def _note_spike(self, judged: Judged) -> None:
        """Logs a step that was not applied. Raises RollBack when there were too many of them."""
        why, row = describe(judged)
        self._write(judged.step, "spike", row)
        self.progress.say(f"step {judged.step} was not applied: {why}")
        first = self.history.first_of_spike()
        if first is None:
            return
        self.checkpoints.wait()
        committed = agreed("committed", self.checkpoints.steps)
        skip = plan_rollback(self.prepared.train, first, judged.step, IN_FLIGHT, committed, self.skips)
        if skip is not None:
            self.progress.say(f"{skip.reason}: back to step {skip.after}, and on with step {skip.to + 1}")
            raise RollBack(skip)

    def _write(self, step: int, kind: str, row: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write(step, kind, row)

    @contextlib.contextmanager
    def _aside(self, meter: Meter, phase: str) -> Iterator[None]:
        """Something else than training: every step under way ends first, and the clock stands."""
        self._report(meter, meter.pause())
        with self.watchdog.slow(phase), self.ledger.during(phase):
            yield
        meter.start()

    @contextlib.contextmanager
    def _compiling(self, meter: Meter, array: tuple[str, tuple[int, ...]]) -> Iterator[None]:
        """The first step of a shape (named by its largest array), off the clock up to its end."""
        with self._aside(meter, "compilation"):
            begun = time.perf_counter()
            yield
            self._report(meter, meter.pause())
        seconds = time.perf_counter() - begun
        self.progress.say(f"first step of {array[0]} {array[1]}, compilation included: {seconds:.1f} s")

    def _evaluate(self, step: int, state: TrainState, frozen: Frozen) -> None:
        batches = itertools.islice(self.prepared.eval_batches(step), self.prepared.train.eval_batches)
        sums, first = [], None
        for number, held_out in enumerate(batches):
            batch = put_batch(held_out, self.mesh)
            compile_together(self.evaluate, state.ema, frozen, batch, np.int32(number))
            sums.append(self.evaluate(state.ema, frozen, batch, np.int32(number)))
            first = batch if first is None else first
        self._write(step, "norms", self.norms(state.params, frozen, first))
        if not sums:
            logger.warning("no held-out data: nothing to evaluate at step %d", step)
            return
        row = mean_of_sums(sums)
        self._write(step, "eval", row)
        self.progress.say(f"step {step} held out: {'  '.join(f'{n} {v:.4g}' for n, v in row.items())}")

    def _preview(self, step: int, state: TrainState, frozen: Frozen) -> None:
        if self.prepared.task.preview is None:
            return
        params, mesh = (state.ema, self.mesh) if jax.process_count() == 1 else on_local_devices(state.ema)
        if is_leader():
            folder = self.workdir / PREVIEWS
            folder.mkdir(exist_ok=True)
            task = self.prepared.task
            if jax.process_count() > 1 or task.preview_frozen:
                frozen = put_frozen({**dict(task.frozen), **dict(task.preview_frozen)}, mesh)
            with jax.set_mesh(mesh):
                paths = self.prepared.task.preview(params, frozen, folder, step)
            self.progress.say(f"step {step} preview: {', '.join(map(str, paths))}")
        barrier("preview")

    def _save(self, step: int, state: TrainState, window: dict[str, Any], last: bool) -> None:
        data = {
            "seed": self.prepared.train.seed,
            "fingerprints": dict(self.prepared.task.fingerprints),
            "recent": self.history.to_json(),
            "window": window,
        }
        self.checkpoints.save(state, step, data, last=last)
        self.progress.say(f"step {step} saving to {self.checkpoints.folder(step)}")


def _due(step: int, every: int, num_steps: int) -> bool:
    """Every `every` steps and at the end; never if `every` is 0."""
    return every > 0 and (step % every == 0 or step == num_steps)


def summarise(workdir: Path, config: TrainConfig, reached: int, start: int, seconds: float) -> dict[str, Any]:
    """What the run has come to, from its own files."""
    rows = read_metrics(workdir)
    last = {kind: next((row for row in reversed(rows) if row["kind"] == kind), {}) for kind in ("train", "eval")}
    finished = reached >= config.num_steps
    steps = committed_steps(workdir / CHECKPOINTS)
    summary = {
        "status": "finished" if finished else "preempted",
        "step": reached,
        "num_steps": config.num_steps,
        "resumed_from": start,
        "loss": last["train"].get("loss"),
        "loss_step": last["train"].get("step"),
        "unreadable_clips": sum(row.get("unreadable_clips") or 0.0 for row in rows),
        "metrics": {n: v for n, v in last["train"].items() if n not in ("kind", "step", "loss", "unreadable_clips")},
        "eval": {n: v for n, v in last["eval"].items() if n != "kind"},
        "checkpoint": str(workdir / CHECKPOINTS / str(steps[-1])) if steps else None,
        "seconds": round(seconds, 2),
    }
    logger.info("%s at step %d of %d after %s", summary["status"], reached, config.num_steps, duration(seconds))
    return summary if finished else {**summary, "exit_code": EXIT_PREEMPTED}
