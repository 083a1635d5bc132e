"""Bytes on one device, by kind, and what to change when there are too many.

What is stored between steps follows from shapes and shardings exactly. What a step needs beside (activations,
gradients, gathered weights) only the compiler knows; `estimate_temporaries` guesses it for a search.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from sora_jax.models.layers import DTYPES
from sora_jax.parallel import CONTEXT, DATA, FSDP, REPLICA, RULES, TENSOR, mesh_platform
from sora_jax.planning.subjects import Subject

SAVED_WIDTHS = {"offload": 0.0, "full": 1.0, "dots": 13.0, "none": 34.0}
"""Activations that a block keeps on the device for its backward pass, in widths of the model, for each token."""
WORKING_WIDTHS = {"tpu": 105.0, "gpu": 50.0, "cpu": 60.0}
"""The same for the one block whose backward pass is under way: what was left of compiled steps of the 2B on v5e and the
7B on H100 (docs/plan.md)."""


def bytes_on_device(tree: Any) -> int:
    """Bytes of one device's shards of a tree of shapes with shardings."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "sharding")]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def stored_bytes(state: Any, frozen: Any, batch: dict[str, Any], unread: tuple[str, ...] = ()) -> dict[str, int]:
    """Bytes of one device by kind: all that the step is given and, of the batch, reads."""
    batch = {name: x for name, x in batch.items() if name not in unread}
    counters = (state.step, state.skipped, state.nonfinite_in_a_row)
    return {
        "parameters": bytes_on_device(state.params),
        "optimizer": bytes_on_device(state.opt_state),
        "ema": bytes_on_device(state.ema),
        "frozen": bytes_on_device(frozen),
        "batch": bytes_on_device(batch),
        "counters": bytes_on_device(counters),
    }


def estimate_temporaries(subject: Subject, mesh: Mesh, parameter_bytes: int) -> float:
    """Bytes of gradients, activations and gathered weights on one device, roughly; call it under
    `jax.set_mesh`."""
    model, train = subject.dit, subject.train
    row_shards = math.prod(mesh.shape[axis] for axis in RULES.row)
    tokens = subject.tokens / row_shards / train.microbatches / mesh.shape[CONTEXT]
    size = DTYPES[model.dtype].dtype.itemsize
    saved = SAVED_WIDTHS.get(model.remat, 1.0) * model.depth * tokens * model.width * size
    working = WORKING_WIDTHS.get(mesh_platform(), 60.0) * tokens * model.width * size / mesh.shape[TENSOR]
    gradients = parameter_bytes * (1 if train.microbatches == 1 else 2)
    block = 16 * model.width**2 * 3 * size
    return saved + working + gradients + block


def remedies(subject: Subject, mesh: Mesh) -> list[str]:
    """What makes a step smaller, the nearest change first, by the names of the options."""
    train = subject.train
    shards = math.prod(mesh.shape[axis] for axis in RULES.row)
    found = []
    if whole := mesh.shape[DATA] * mesh.shape[REPLICA] > 1:
        found.append(f"more fsdp: --mesh {FSDP}={shards} instead of {DATA}={mesh.shape[DATA]}")
    if subject.unit == "tokens" and subject.remat not in ("full", "offload"):
        found.append(f"--config.model.remat=full instead of {subject.remat}")
    per_shard = train.batch_rows // shards
    if per_shard > train.microbatches:
        more = next(n for n in range(train.microbatches + 1, per_shard + 1) if per_shard % n == 0)
        found.append(f"--config.train.microbatches={more} instead of {train.microbatches}")
    if not whole or not found:
        smaller = "fewer tokens a row (--config.data.row_tokens)" if subject.unit == "tokens" else "smaller crops"
        found.append(f"more devices, {smaller}, or --mesh context=2 beside fsdp")
    return found


def with_train(subject: Subject, **changes: Any) -> Subject:
    """The subject with other fields of `config.train`."""
    return dataclasses.replace(subject, train=dataclasses.replace(subject.train, **changes))
