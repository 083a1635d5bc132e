"""One training step: a pure function of (state, frozen networks, batch), jitted once, with donated state.

Groups of parameters are updated in the task's order, each seeing the groups before it already updated. A group's
gradient is that of its summed loss over the microbatches, divided by the summed weight: accumulation equals the full
batch. If any loss or gradient is not finite, or above the step's limits (`spikes.py`), nothing of the step is applied;
the state counts it and moves on.

The batch that a loss sees also holds the step's number, as `step`. The noise key of step `s` is
`fold_in(key(seed), s)`. The keys of initialisation and evaluation are `fold_in`s of the same key with numbers that no
step reaches (`split` would give those of the first steps).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from sora_jax.config import TrainConfig
from sora_jax.parallel import constrain
from sora_jax.training.ema import decay_at, init_ema, update_ema
from sora_jax.training.optim import Optimizer, clip_by_norm, make_optimizer
from sora_jax.training.xla_options import xla_options
from sora_jax.types import Batch, Frozen, LossOutput, ParamGroup, Params, Sums, Task

INIT_KEY, EVAL_KEY = 2**32 - 1, 2**32 - 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries from step to step, or the shapes or shardings of it (hence the untyped leaves)."""

    step: Any
    """int32 scalar: batches consumed, skipped ones included"""
    params: Params
    ema: Params
    opt_state: dict[str, Any]
    """group name -> its optimizer's state"""
    skipped: Any
    """int32 scalar: steps whose update was not applied, and those that a roll-back left out"""
    nonfinite_in_a_row: Any
    """int32 scalar: how many of the most recent steps had a loss or gradient that was not finite"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """One small float32 array a step, read some steps later: row i is (sum, weight) of metric `names[i]`."""

    values: Any
    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})


def fold_seed(seed: int, number: int | Int[Array, ""]) -> PRNGKeyArray:
    """The key of step `number`, or of INIT_KEY or EVAL_KEY."""
    return jax.random.fold_in(jax.random.key(seed), number)


def make_optimizers(task: Task, config: TrainConfig) -> dict[str, Optimizer]:
    """Group name -> its optimizer."""
    return {group.name: make_optimizer(group.optim, config.num_steps) for group in task.groups}


def build_state(task: Task, config: TrainConfig) -> TrainState:
    """The state before the first step; call it under `jax.jit` or `jax.eval_shape`."""
    params = task.init(fold_seed(config.seed, INIT_KEY))
    opt_state = {name: optimizer.init(params[name]) for name, optimizer in make_optimizers(task, config).items()}
    zeros = [jnp.zeros((), jnp.int32) for _ in range(3)]
    return TrainState(zeros[0], params, init_ema(params), opt_state, zeros[1], zeros[2])


def abstract_state(task: Task, config: TrainConfig) -> TrainState:
    """Shapes and dtypes of the state; computes nothing."""
    return jax.eval_shape(functools.partial(build_state, task, config))


def init_state(task: Task, config: TrainConfig, shardings: TrainState) -> TrainState:
    """The state before the first step, each array created on the devices where it lives."""
    return jax.jit(functools.partial(build_state, task, config), out_shardings=shardings)()


def make_train_step(task: Task, config: TrainConfig, shardings: TrainState) -> Any:
    """`jit(step)(state, frozen, batch, limits=None) -> (state, StepMetrics)`; the old state's memory is reused.

    `limits [groups, 2]` are the highest mean loss and gradient norm of each group with which the step is applied.
    Call it under `jax.set_mesh`. The batch's arrays bring their own shardings.
    """
    optimizers = make_optimizers(task, config)

    def train_step(
        state: TrainState, frozen: Frozen, batch: Batch, limits: Float[Array, "groups 2"] | None = None
    ) -> tuple[TrainState, StepMetrics]:
        key = fold_seed(config.seed, state.step)
        batch = {**batch, "step": state.step}
        params, opt_state, ema = dict(state.params), dict(state.opt_state), dict(state.ema)
        finite, within, sums = jnp.bool_(True), jnp.bool_(True), {}
        for number, group in enumerate(task.groups):
            optimizer = optimizers[group.name]
            loss, gradient = accumulate(group, params, frozen, batch, key, config.microbatches)
            norm = optax.tree.norm(gradient)
            finite &= jnp.isfinite(loss.total) & jnp.isfinite(norm)
            if limits is not None:
                within &= (loss.total / jnp.where(loss.weight > 0, loss.weight, 1) <= limits[number, 0]) & (
                    norm <= limits[number, 1]
                )
            clipped = clip_by_norm(gradient, norm, optimizer.clip_norm)
            change, opt_state[group.name] = optimizer.update(
                clipped, opt_state[group.name], params[group.name], state.step
            )
            params[group.name] = optax.apply_updates(params[group.name], change)
            # The average of a warm start is a good one already: only that of random parameters is soon forgotten.
            decay = group.optim.ema_decay if config.init_from else decay_at(state.step, group.optim.ema_decay)
            ema[group.name] = update_ema(ema[group.name], params[group.name], jnp.asarray(decay, jnp.float32))
            _add_metrics(sums, group, loss, norm, optimizer.learning_rate(state.step))
        new = dataclasses.replace(state, params=params, ema=ema, opt_state=opt_state)
        return _commit(state, new, finite, within, sums)

    mesh: Mesh = shardings.step.mesh
    replicated = NamedSharding(mesh, PartitionSpec())
    options = xla_options(config.xla)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated), compiler_options=options)


def skip_to(state: TrainState, step: int, shardings: TrainState) -> TrainState:
    """`state` as if the steps up to `step` had been taken and none of them applied."""
    move = jax.jit(
        lambda now, skipped: (jnp.full_like(now, step), skipped + (step - now)),
        out_shardings=(shardings.step, shardings.skipped),
    )
    now, skipped = move(state.step, state.skipped)
    return dataclasses.replace(state, step=now, skipped=skipped)


def make_evaluate(task: Task, config: TrainConfig, shardings: TrainState) -> Any:
    """`jit(evaluate)(params, frozen, batch, number of the batch) -> Sums`, with noise fixed by seed and number."""

    def evaluate(params: Params, frozen: Frozen, batch: Batch, number: Int[Array, ""]) -> Sums:
        return task.evaluate(params, frozen, batch, jax.random.fold_in(fold_seed(config.seed, EVAL_KEY), number))

    return jax.jit(evaluate, out_shardings=NamedSharding(shardings.step.mesh, PartitionSpec()))


def accumulate(
    group: ParamGroup, params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray, microbatches: int
) -> tuple[LossOutput, Any]:
    """The group's loss over the batch and the gradient of its mean, one microbatch in memory at a time."""

    def total(own: Any, rows: Batch, row_offset: Int[Array, ""]) -> tuple[Array, LossOutput]:
        output = group.loss({**params, group.name: own}, frozen, rows, key, row_offset)
        return output.total, output

    gradient_of = jax.grad(total, has_aux=True)
    own = params[group.name]
    if microbatches == 1:
        gradient, output = gradient_of(own, batch, jnp.int32(0))
    else:
        parts, offsets = _split(batch, microbatches)

        def add(carried: Any, part: tuple[Batch, Int[Array, ""]]) -> tuple[Any, LossOutput]:
            gradient, output = gradient_of(own, part[0] | _scalars(batch), part[1])
            return jax.tree.map(jnp.add, carried, gradient), output

        gradient, outputs = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, own), (parts, offsets))
        output = jax.tree.map(lambda x: x.sum(0), outputs)
    return output, jax.tree.map(lambda g: g / jnp.where(output.weight > 0, output.weight, 1), gradient)


def _split(batch: Batch, microbatches: int) -> tuple[dict[str, Shaped[Array, "..."]], Int[Array, " microbatches"]]:
    """Contiguous microbatches `[microbatches, rows, ...]` and the global number of each one's first row."""
    arrays = {name: x for name, x in batch.items() if x.ndim}
    rows = next(iter(arrays.values())).shape[0] // microbatches
    parts = {
        name: constrain(x.reshape(microbatches, rows, *x.shape[1:]), None, "row", *(None,) * (x.ndim - 1))
        for name, x in arrays.items()
    }
    return parts, jnp.arange(microbatches, dtype=jnp.int32) * rows


def _scalars(batch: Batch) -> dict[str, Array]:
    return {name: x for name, x in batch.items() if not x.ndim}


def _add_metrics(sums: Sums, group: ParamGroup, loss: LossOutput, norm: Array, rate: Array) -> None:
    """The group's metrics under their own names; a later group's get `/<group>` where a name is taken."""
    one = jnp.float32(1)
    own = {"loss": (loss.total, loss.weight), "grad_norm": (norm, one), "learning_rate": (rate, one), **loss.metrics}
    for name, value in own.items():
        sums[f"{name}/{group.name}" if name in sums else name] = value


def _commit(
    old: TrainState, new: TrainState, finite: Bool[Array, ""], within: Bool[Array, ""], sums: Sums
) -> tuple[TrainState, StepMetrics]:
    """The new state if every loss and gradient was finite and within its limit, else the old one; the step counts
    either way."""
    applied = finite & within
    kept = jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, old)
    skipped = (~applied).astype(jnp.int32)
    in_a_row = jnp.where(finite, 0, old.nonfinite_in_a_row + 1)
    state = dataclasses.replace(
        kept, step=old.step + 1, skipped=old.skipped + skipped, nonfinite_in_a_row=in_a_row.astype(jnp.int32)
    )
    counters = {"skipped": skipped, "skipped_total": state.skipped, "nonfinite_in_a_row": in_a_row}
    named = {**{name: (count, 1) for name, count in counters.items()}, **sums}
    rows = [jnp.stack([jnp.asarray(x, jnp.float32) for x in pair]) for pair in named.values()]
    return state, StepMetrics(jnp.stack(rows), tuple(named))
