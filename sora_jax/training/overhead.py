"""How much the loop costs over the bare jitted step: same batches, same step, no evaluation and no checkpoint."""

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sora_jax.parallel import make_mesh, put_batch, put_frozen, state_shardings
from sora_jax.training.loop import train
from sora_jax.training.metrics import read_metrics
from sora_jax.training.step import abstract_state, init_state, make_train_step
from sora_jax.types import Prepared

NUM_BATCHES = 8


def measure_overhead(prepared: Prepared, num_steps: int = 50, rounds: int = 3) -> dict[str, Any]:
    """Seconds a step, bare and in the loop (best of alternating rounds: noise only adds), and their ratio.

    Both run over the same few host batches of one shape; the loader is measured elsewhere. The loop's time is what
    its own clock says: everything from the second step on, logging included.
    """
    batches = _batches_of_one_shape(prepared)
    bare, looped = [], []
    for _ in range(rounds):
        bare.append(_time_bare_step(prepared, batches, num_steps))
        looped.append(_time_loop(prepared, batches, num_steps))
    seconds = min(bare), min(looped)
    return {"bare_step_seconds": seconds[0], "loop_step_seconds": seconds[1], "overhead": seconds[1] / seconds[0]}


def _batches_of_one_shape(prepared: Prepared) -> list[dict[str, np.ndarray]]:
    stream = prepared.make_batches(0, NUM_BATCHES)
    batches = [{name: np.array(x) for name, x in batch.items()} for batch in stream]
    shapes = {name: x.shape for name, x in batches[0].items()}
    return [b for b in batches if {name: x.shape for name, x in b.items()} == shapes]


def _time_bare_step(prepared: Prepared, batches: list[dict[str, np.ndarray]], num_steps: int) -> float:
    task, config = prepared.task, prepared.train
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        shardings = state_shardings(abstract_state(task, config), mesh)
        state, step = init_state(task, config, shardings), make_train_step(task, config, shardings)
        on_device = [put_batch(batch, mesh) for batch in batches]
        frozen = put_frozen(task.frozen, mesh)
        state, metrics = step(state, frozen, on_device[0])
        jax.block_until_ready(metrics.values)
        begun = time.perf_counter()
        for batch in itertools.islice(itertools.cycle(on_device), num_steps):
            state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))
    return (time.perf_counter() - begun) / num_steps


def _time_loop(prepared: Prepared, batches: list[dict[str, np.ndarray]], num_steps: int) -> float:
    off = {"eval_every": 0, "preview_every": 0, "checkpoint_every": 0, "init_from": ""}
    config = dataclasses.replace(prepared.train, num_steps=num_steps + 1, log_every=10, **off)

    def cycle(start: int, count: int) -> Iterator[Mapping[str, np.ndarray]]:
        return itertools.islice(itertools.cycle(batches), start, start + count)

    with tempfile.TemporaryDirectory() as folder:
        train(prepared._replace(train=config, make_batches=cycle), Path(folder))
        rows = [row for row in read_metrics(folder) if "step_seconds" in row]
    return statistics.fmean(row["step_seconds"] for row in rows)
