"""What checkpoints cost a run: the time that steps stand still for a save, and how long saving and restoring take."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from sora_jax.parallel import make_mesh, state_shardings
from sora_jax.training.checkpoint import Checkpoints
from sora_jax.training.ledger import add_up, read_ledger
from sora_jax.training.loop import train
from sora_jax.training.manifest import find_flaws, read_manifest
from sora_jax.training.step import abstract_state
from sora_jax.types import Prepared

WITH, WITHOUT = "with_saves", "without_saves"


def measure_saves(prepared: Prepared, folder: Path, num_steps: int, every: int) -> dict[str, Any]:
    """Trains twice in `folder`, saving every `every` steps, and never but at the end; then restores.

    `stall_share` is the time that steps stood still for saves over that time and the steps'; `slowdown` is how much
    longer the steps themselves took beside the writing, of which noise is a part.
    """
    step_seconds = {}
    for name, interval in ((WITHOUT, 0), (WITH, every)):
        off = {"eval_every": 0, "preview_every": 0, "checkpoint_every": interval, "init_from": "", "fast_dir": ""}
        config = dataclasses.replace(prepared.train, num_steps=num_steps, keep_last=2, **off)
        train(prepared._replace(train=config), folder / name)
        seconds = add_up(read_ledger(folder / name)).seconds
        step_seconds[name] = seconds["productive"] + seconds["input_wait"]
    stalls = durations(read_ledger(folder / WITH), "save")[:-1]  # the last one waits for the writing, as the run ends
    return {
        "num_steps": num_steps,
        "every": every,
        "saves": len(stalls),
        "stall_share": sum(stalls) / (sum(stalls) + step_seconds[WITH]),
        "stall_seconds": statistics.median(stalls),
        "first_stall_seconds": stalls[0],
        "step_seconds": step_seconds[WITH] / num_steps,
        "slowdown": step_seconds[WITH] / step_seconds[WITHOUT] - 1,
        **_time_restore(prepared, folder / WITH, folder / "again"),
    }


def durations(marks: Sequence[dict[str, Any]], kind: str) -> list[float]:
    """Seconds of each stretch of `kind` in a ledger."""
    return [after["time"] - mark["time"] for mark, after in itertools.pairwise(marks) if mark["kind"] == kind]


def _time_restore(prepared: Prepared, run_dir: Path, elsewhere: Path) -> dict[str, Any]:
    """Seconds to verify and to restore the newest step (its files are likely in the page cache), and to save it."""
    mesh = make_mesh(prepared.train.mesh)
    shapes = abstract_state(prepared.task, prepared.train)
    abstract = jax.tree.map(lambda x, s: x.update(sharding=s), shapes, state_shardings(shapes, mesh))
    config = dataclasses.replace(prepared.train, fast_dir="")
    with Checkpoints.of_run(run_dir, config, {}) as checkpoints:
        step = checkpoints.steps[-1]
        folder = checkpoints.folder(step)
        manifest = read_manifest(folder)
        begun = time.perf_counter()
        flaws = list(find_flaws(folder))
        verified = time.perf_counter()
        state, _ = checkpoints.restore(step, abstract)
        jax.block_until_ready(state)
        restored = time.perf_counter()
    with Checkpoints.of_run(elsewhere, config, {}) as checkpoints:
        checkpoints.save(state, step, {})
        returned = time.perf_counter()
        checkpoints.wait()
        saved = time.perf_counter()
    return {
        "bytes": manifest.size_bytes if manifest else None,
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "flaws": len(flaws),
        "verify_seconds": verified - begun,
        "restore_seconds": restored - verified,
        "save_blocks_seconds": returned - restored,
        "save_seconds": saved - restored,
    }
