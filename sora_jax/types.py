"""The seams of the program: what a task is, what a loss returns, what a batch is.

A *task* (diffusion, autoencoder) is a frozen record of pure functions over pytrees; the training loop knows nothing
else about it. Rows of a batch are numbered globally, so that random draws do not depend on hosts or accumulation.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sora_jax.config import OptimConfig, TrainConfig

Params = dict[str, Any]
"""Parameter group name -> nested dict of float32 arrays."""
Frozen = Any
"""Any pytree of arrays that a task reads and never trains."""
Batch = Mapping[str, Any]
"""Name -> array. The leading dim is the row, except for scalars."""
Device = Any
"""A `jax.Device`, which type checkers take for a variable."""
Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Metric name -> (sum, weight); the metric is sum / weight."""


class LossOutput(NamedTuple):
    """A loss as a sum and the count that it is a sum over, so that microbatches add up exactly."""

    total: jax.Array
    weight: jax.Array
    metrics: Sums


LossFn = Callable[[Params, Frozen, Batch, jax.Array, jax.Array], LossOutput]
"""(params, frozen, batch, step key, number of the batch's first row in the global batch) -> LossOutput. The batch also
holds the scalar `step`."""


@dataclass(frozen=True)
class ParamGroup:
    """Parameters under one name, the loss whose gradient they follow, and their optimizer."""

    name: str
    loss: LossFn
    optim: OptimConfig


@dataclass(frozen=True)
class Task:
    """What the loop trains. Groups are updated in their order within each step."""

    name: str
    init: Callable[[jax.Array], Params]
    groups: tuple[ParamGroup, ...]
    evaluate: Callable[[Params, Frozen, Batch, jax.Array], Sums]
    flops: Callable[[Mapping[str, np.ndarray]], float]
    frozen: Frozen = ()
    activations: Callable[[Params, Frozen, Batch, jax.Array], dict[str, jax.Array]] | None = None
    """(params, frozen, batch, key) -> name -> root mean square of activations, one number or one a layer"""
    preview: Callable[[Params, Frozen, Path, int], list[Path]] | None = None
    preview_frozen: Frozen = ()
    """What a preview reads beside `frozen`: on the devices only while it runs."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)


class DataStage(NamedTuple):
    """From which step on a run's data are others, and how many rows its global batch has then."""

    start: int
    batch_rows: int


class Prepared(NamedTuple):
    """A task with its data: everything that `train` needs."""

    task: Task
    train: TrainConfig
    make_batches: Callable[[int, int], Iterator[Mapping[str, np.ndarray]]]
    """(start step, number of steps) -> batches of this host's rows."""
    eval_batches: Callable[[int], Iterable[Mapping[str, np.ndarray]]]
    """(steps taken so far) -> held-out batches of this host's rows."""
    config: dict[str, Any]
    stages: tuple[DataStage, ...] = ()
    """Empty where the data is the same throughout."""
