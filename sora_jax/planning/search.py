"""Which mesh, accumulation and rematerialisation to try first: many ranked by arithmetic, the best few compiled.

The global batch is the run's and stays. Memory is exact for what is stored and an estimate for the rest (`memory.py`);
time is compute at the peak against each axis's traffic at the speed of its links:

- fsdp: weights in the activations' dtype, gathered forward and backward, and their gradients scattered, a microbatch;
- data, replica: gradients in float32 all-reduced once a step, a shard of fsdp each;
- context: queries, keys, values and outputs change hands forward, again where they are computed again, and backward.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from data_pipeline.errors import UserError
from sora_jax.models.layers import DTYPES
from sora_jax.parallel import CONTEXT, DATA, FSDP, REPLICA, RULES, make_mesh
from sora_jax.planning.collectives import wire_factor
from sora_jax.planning.compile import abstract_arguments
from sora_jax.planning.memory import estimate_temporaries, stored_bytes, with_train
from sora_jax.planning.subjects import Assumptions, Subject, diffusion_subject
from sora_jax.planning.topologies import GiB, Topology

REMATS = ("none", "dots", "full")
MAX_MICROBATCHES = 16


@dataclass(frozen=True)
class Candidate:
    """One way to lay the step out, and what arithmetic says of it: bytes of a device, and seconds of a step."""

    mesh: dict[str, int]
    microbatches: int
    remat: str
    total_bytes: float
    step_s: float
    mfu: float

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The run's config, laid out this way."""
        changed = copy.deepcopy(dict(config))
        changed["train"] |= {"mesh": dict(self.mesh), "microbatches": self.microbatches}
        changed["model"]["remat"] = self.remat
        return changed


def rank(config: Mapping[str, Any], assumed: Assumptions, topology: Topology, devices: list[Any]) -> list[Candidate]:
    """All layouts that should fit, fastest first. Raises UserError when none does."""
    subjects = {remat: _with_remat(config, remat, assumed) for remat in REMATS}
    first = subjects["full"]
    found, least = [], math.inf
    row_tokens = first.batch["segment_ids"].shape[1]
    for shape in meshes(topology, first.dit.num_heads):
        if row_tokens % shape.get(CONTEXT, 1):
            continue
        mesh = make_mesh(shape, devices)
        with jax.set_mesh(mesh):
            stored = stored_bytes(*abstract_arguments(first, mesh))
        for remat, microbatches in itertools.product(REMATS, accumulations(first.train.batch_rows, mesh)):
            subject = with_train(subjects[remat], microbatches=microbatches)
            with jax.set_mesh(mesh):
                total = sum(stored.values()) + estimate_temporaries(subject, mesh, stored["parameters"])
            least = min(least, total)
            if total <= topology.usable_memory:
                step, useful = estimate_seconds(subject, mesh, topology, stored["parameters"])
                found.append(Candidate(shape, microbatches, remat, total, step, useful / step))
    if not found:
        raise UserError(
            f"no layout of {first.train.batch_rows} rows on {topology.name} should fit: the smallest needs about "
            f"{least / GiB:.1f} GiB of {topology.usable_memory / GiB:.1f}; take more devices or shorter rows"
        )
    return sorted(found, key=lambda c: (c.step_s, c.total_bytes))


def meshes(topology: Topology, num_heads: int) -> Iterator[dict[str, int]]:
    """Meshes of `replica` (the slices), `data`, `fsdp` and `context` that multiply to the devices."""
    within = topology.num_devices // topology.num_slices
    for context in (n for n in range(1, min(within, num_heads, 16) + 1) if within % n == 0 and num_heads % n == 0):
        for data in (2**i for i in range(10) if within // context % 2**i == 0):
            sizes = {REPLICA: topology.num_slices, DATA: data, FSDP: within // context // data, CONTEXT: context}
            yield {axis: size for axis, size in sizes.items() if size > 1} or {FSDP: 1}


def accumulations(batch_rows: int, mesh: Mesh) -> list[int]:
    """Numbers of microbatches that split the rows; none if the mesh does not."""
    shards = math.prod(mesh.shape[axis] for axis in RULES.row)
    return [n for n in range(1, MAX_MICROBATCHES + 1) if batch_rows % (shards * n) == 0]


def estimate_seconds(subject: Subject, mesh: Mesh, topology: Topology, parameter_bytes: int) -> tuple[float, float]:
    """(least seconds of a step, seconds of its useful FLOPs) if all traffic is hidden and only the slowest counts."""
    peak = topology.num_devices * topology.chip.peak_bf16
    size = DTYPES[subject.dit.dtype].dtype.itemsize
    whole = parameter_bytes * mesh.shape[FSDP]
    gathers = 2 if subject.dit.remat == "none" else 3  # forward, its repetition or the backward pass, gradients
    local = subject.tokens / math.prod(mesh.shape[axis] for axis in (*RULES.row, CONTEXT))
    exchanges = 4 * (3 if subject.dit.remat != "none" else 2) * subject.dit.depth
    sent = {
        FSDP: gathers * subject.train.microbatches * whole * size / 4 * wire_factor("reduce-scatter", mesh.shape[FSDP]),
        DATA: parameter_bytes * wire_factor("all-reduce", mesh.shape[DATA]),
        REPLICA: parameter_bytes * wire_factor("all-reduce", mesh.shape[REPLICA]),
        CONTEXT: exchanges * local * subject.dit.width * size * wire_factor("all-to-all", mesh.shape[CONTEXT]),
    }
    links: dict[str, float] = {}
    for axis, number in sent.items():
        if mesh.shape[axis] > 1:
            link, bandwidth = topology.bandwidth(_neighbours(mesh, axis))
            links[link] = links.get(link, 0.0) + number / bandwidth
    compute = (subject.useful_flops + subject.recomputed_flops) / peak
    return max(compute, *links.values(), 0.0), subject.useful_flops / peak


def _neighbours(mesh: Mesh, axis: str) -> list[Any]:
    """The devices of one group along an axis."""
    place = mesh.axis_names.index(axis)
    return list(np.moveaxis(mesh.devices, place, -1).reshape(-1, mesh.shape[axis])[0])


def _with_remat(config: Mapping[str, Any], remat: str, assumed: Assumptions) -> Subject:
    return diffusion_subject({**config, "model": {**config["model"], "remat": remat}}, assumed)


def ranking(candidates: list[Candidate]) -> Table:
    """The best of them, for people."""
    table = Table("mesh", "microbatches", "remat", "GiB, about", "step, s", "MFU at most", title="ranked by arithmetic")
    for c in candidates:
        mesh = " ".join(f"{axis}={size}" for axis, size in c.mesh.items())
        row = str(c.microbatches), c.remat, f"{c.total_bytes / GiB:.1f}", f"{c.step_s:.3f}", f"{c.mfu:.1%}"
        table.add_row(mesh, *row)
    return table
