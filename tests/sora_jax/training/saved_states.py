"""States with known values, and runs that have saved them."""

import json

import jax
import jax.numpy as jnp

from sora_jax.parallel import state_shardings
from sora_jax.training.checkpoint import Checkpoints, Retention, describe_run
from sora_jax.training.step import TrainState
from sora_jax.training.tiers import open_fast_tier


def state_of(size: int = 64, value: float = 0.0) -> TrainState:
    """A state with a known value everywhere."""
    tree = lambda: {"net": {"blocks": {"mlp_in": {"kernel": jnp.full((2, size, size), value)}}, "bias": jnp.zeros(3)}}  # noqa: E731
    count = lambda: jnp.array(value, jnp.int32)  # noqa: E731
    return TrainState(count(), tree(), tree(), {"net": (tree(), {"count": count()})}, count(), count())


def abstract_of(state: TrainState, mesh: jax.sharding.Mesh | None = None) -> TrainState:
    if mesh is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return jax.tree.map(lambda x, s: x.update(sharding=s), shapes, state_shardings(shapes, mesh))


def open_checkpoints(run_dir, keep_last=3) -> Checkpoints:
    return Checkpoints(run_dir, Retention(keep_last), describe_run({"train": {"seed": 1}}, {"data": "abc"}))


def save_all(run_dir, steps, keep_last=3, size=64) -> None:
    with open_checkpoints(run_dir, keep_last) as checkpoints:
        for step in steps:
            checkpoints.save(state_of(size, step), step, {"seed": 1})


def biggest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def make_run_with_fast_tier(folder):
    """A run directory in `folder`, with an id and a fast tier beside it."""
    run = folder / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"id": "abc"}))
    (run / "config.json").write_text(json.dumps({"train": {"fast_dir": str(folder / "fast")}}))
    return run


def save_in_two_tiers(run, steps, durable_every, last=()) -> None:
    tier = open_fast_tier(str(run.parent / "fast"), run)
    with Checkpoints(
        run, Retention(2), describe_run({}, {}), fast_tier=tier, durable_every=durable_every
    ) as checkpoints:
        for step in steps:
            checkpoints.save(state_of(8, step), step, {}, last=step in last)
            checkpoints.wait()
