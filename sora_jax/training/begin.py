"""What comes before a run's first step: a config that names what is there, and the state to go on from."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipeline.errors import UserError
from sora_jax.parallel import put_batch
from sora_jax.training import step as training_step
from sora_jax.training.checkpoint import Checkpoints
from sora_jax.training.distributed import is_leader
from sora_jax.training.step import TrainState
from sora_jax.training.warm_start import warm_start
from sora_jax.types import Prepared

WARM_START = "init_from.json"

logger = logging.getLogger(__name__)


def check_keep_best(prepared: Prepared, mesh: Mesh) -> None:
    """Raises UserError if `keep_best` names no metric of the held-out evaluation, or one that stages do not share."""
    task, config = prepared.task, prepared.train
    if len(prepared.stages) > 1:
        raise UserError(
            f"config.train.keep_best is '{config.keep_best}', but config.data.stages has {len(prepared.stages)}, and "
            "what one stage holds out does not compare with another's: leave keep_best empty, or set keep_every"
        )
    first = next(iter(prepared.eval_batches(0)), None)
    if first is None:
        raise UserError(f"config.train.keep_best is '{config.keep_best}', but the data set has no held-out clips")
    with jax.set_mesh(mesh):
        params = training_step.abstract_state(task, config).params
        key = training_step.fold_seed(config.seed, training_step.EVAL_KEY)
        names = sorted(jax.eval_shape(task.evaluate, params, task.frozen, put_batch(first, mesh), key))
    if config.keep_best.partition(":")[0] not in names:
        raise UserError(
            f"config.train.keep_best is '{config.keep_best}', but the held-out evaluation measures {', '.join(names)}"
        )


def restore_or_init(
    prepared: Prepared, checkpoints: Checkpoints, workdir: Path, shardings: TrainState, start: int
) -> tuple[TrainState, dict[str, Any]]:
    """The state and data of the checkpoint of step `start`, else (0) a fresh one, with `init_from`'s parameters."""
    task, config = prepared.task, prepared.train
    if start:
        shapes = training_step.abstract_state(task, config)
        abstract = jax.tree.map(lambda x, s: x.update(sharding=s), shapes, shardings)
        state, data = checkpoints.restore(start, abstract)
        logger.info("continuing %s from step %d", workdir, start)
        return state, data
    state = training_step.init_state(task, config, shardings)
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    logger.info("%s: %.3g M parameters on %d device(s)", task.name, num_parameters / 1e6, shardings.step.mesh.size)
    if config.init_from:
        state, report = warm_start(config.init_from, state)
        logger.info("%s", report.summary())
        if is_leader():
            (workdir / WARM_START).write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    return state, {}
