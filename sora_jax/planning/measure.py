"""A plan held against the device itself, where it is attached: the same program, run."""

import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sora_jax.parallel import batch_shardings, state_shardings
from sora_jax.planning.compile import Program
from sora_jax.planning.subjects import Subject
from sora_jax.training.step import init_state

POINTER_BYTES = 8
"""XLA counts a table of pointers to a program's results among them; they lie on the host."""


def measure(subject: Subject, mesh: Mesh, program: Program, num_steps: int = 3) -> dict[str, Any]:
    """Runs the compiled step on a batch of zeros: bytes that the mesh's first device really holds, its peak where it
    reports one, and the fastest of the steps in seconds."""
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(lambda x: x.sharding, program.state)
        state = init_state(subject.task, subject.train, shardings)
        frozen = _zeros(subject.task.frozen, state_shardings(subject.task.frozen, mesh))
        batch = _zeros(subject.batch, batch_shardings(subject.batch, mesh))
        read = {name: x for name, x in batch.items() if name not in program.unread}
        arguments = held_bytes((state, frozen, read), mesh)
        seconds = []
        for _ in range(num_steps):
            begun = time.perf_counter()
            state, metrics = program.compiled(state, frozen, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - begun)
        outputs = held_bytes((state, metrics), mesh)
    tables = POINTER_BYTES * len(jax.tree.leaves((state, metrics)))
    peak = (mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "arguments": {"predicted": program.arguments, "measured": arguments},
        "outputs": {"predicted": program.outputs - tables, "measured": outputs},
        "peak": {"predicted": program.total, "measured": peak},
        "step_s": min(seconds),
    }


def held_bytes(tree: Any, mesh: Mesh) -> int:
    """Bytes of a tree of arrays that lie on the mesh's first device."""
    first = mesh.devices.flat[0]
    shards = (shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == first)


def _zeros(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.device_put(jnp.zeros(x.shape, x.dtype), s), tree, shardings)
