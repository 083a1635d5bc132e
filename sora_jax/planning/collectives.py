"""The collectives of a compiled step: what they send, over which mesh axes, how often, and whether compute hides them.

A collective counts as *hidden* if the schedule, which for TPUs and GPUs is the order of the text, starts it, computes
something, and only then waits for it. That can be seen in three forms:

- `all-gather-start` … `all-gather-done` with a fusion, a matmul, a kernel or a loop between them;
- TPU: `AsyncCollectiveStart` and `Done` with fusions `async_collective_fusion…` between them, in which a part of the
  transfer runs beside a matmul; its copies share one channel id and are counted once;
- `async-start` … `async-done` around a computation that holds the collective;
- several TPU slices: `send` … `send-done` through the hosts (Megascale), which names its kind.

Everything else is *exposed*: the device waits.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sora_jax.planning.groups import parse_groups, varying_axes
from sora_jax.planning.hlo import Computation, Instruction, Module, shape_bytes
from sora_jax.planning.topologies import Topology

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
COMPUTE = ("fusion", "dot", "convolution", "while", "call", "conditional", "custom-call")
NO_COMPUTE = re.compile(r"AllocateBuffer|ConcatBitcast|AsyncCollective|AssumeGather|Sharding")
MIN_COMPUTE_BYTES = 2**20
"""A fusion of less hides nothing worth the name."""


@dataclass(frozen=True)
class Collective:
    """One collective of the program. `wire_bytes` is what one device sends (and receives) each time, `count` how often
    it runs in a step, `seconds` how long all of that takes at the speed of `link`."""

    kind: str
    axes: tuple[str, ...]
    group_size: int
    payload_bytes: float
    wire_bytes: float
    count: float
    is_hidden: bool
    link: str
    bandwidth: float
    where: str

    @property
    def seconds(self) -> float:
        return self.count * self.wire_bytes / self.bandwidth


def find_collectives(
    module: Module, devices: np.ndarray, mesh_shape: Mapping[str, int], topology: Topology
) -> list[Collective]:
    """All collectives of a step among `devices`, the mesh's in row-major order."""
    callers = _callers(module)
    found: dict[tuple[str, str], Collective] = {}
    for name, times in module.times_run.items():
        computation = module.computations[name]
        for instruction in computation.instructions:
            kind = _kind_of(instruction)
            if kind not in KINDS:
                continue
            # A fused transfer that starts before a loop, and goes on within it, is one for all rounds.
            outer = "" if "chain_id" in instruction.attributes else _outermost(callers, name)
            channel = instruction.attribute(r"channel_id=(\d+)") or instruction.name
            known = found.get((channel, outer))
            hidden = _is_hidden(computation, instruction) or _is_in_async_fusion(module, callers, name)
            if known is not None:
                found[channel, outer] = dataclasses.replace(
                    known, is_hidden=known.is_hidden or hidden, count=min(known.count, times)
                )
                continue
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):  # TPU: one fused kernel
                kind = "reduce-scatter"
            found[channel, outer] = _describe(
                kind, instruction, computation, times, hidden, devices, mesh_shape, topology
            )
    return [collective for collective in found.values() if collective.group_size > 1]


def _describe(
    kind: str,
    instruction: Instruction,
    computation: Computation,
    times: float,
    hidden: bool,
    devices: np.ndarray,
    mesh_shape: Mapping[str, int],
    topology: Topology,
) -> Collective:
    groups = parse_groups(instruction.attributes, devices.size)
    if instruction.opcode == "send":  # between the slices, which lie along the mesh's first axis
        groups = np.arange(devices.size).reshape(topology.num_slices, -1).T
    payload = sum(shape_bytes(computation.by_name[o].shape) for o in instruction.operands if o in computation.by_name)
    speed = topology.ring_bandwidth if kind == "collective-permute" else topology.bandwidth
    speeds = [speed([devices[i] for i in group]) for group in groups[:: max(1, len(groups) // 8)]]
    link, bandwidth = min(speeds, key=lambda speed: speed[1])
    size = groups.shape[-1]
    return Collective(
        kind=kind,
        axes=varying_axes(groups, mesh_shape),
        group_size=size,
        payload_bytes=payload,
        wire_bytes=payload * wire_factor(kind, size),
        count=times,
        is_hidden=hidden,
        link=link,
        bandwidth=bandwidth,
        where=instruction.attribute(r'op_name="([^"]*)"') or "",
    )


def _kind_of(instruction: Instruction) -> str:
    """The collective that an instruction is or starts: its opcode, or what a transfer between slices says of itself."""
    if instruction.opcode == "send":
        name = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"') or ""
        return name.lower().replace("_", "-")
    return instruction.opcode.removesuffix("-start")


def wire_factor(kind: str, group_size: int) -> float:
    """Bytes that a device sends for each byte of its operand, by the algorithms that are optimal in bandwidth."""
    others = group_size - 1
    return {
        "all-gather": float(others),
        "reduce-scatter": others / group_size,
        "all-reduce": 2 * others / group_size,
        "collective-permute": 1.0,
    }.get(kind, others / group_size)


def summarise(collectives: list[Collective]) -> dict[str, Any]:
    """By mesh axes and kind: how many run in a step, GB that a device sends, seconds, and what of it is exposed."""
    rows: dict[str, dict[str, Any]] = {}
    for c in sorted(collectives, key=lambda c: (c.axes, c.kind)):
        key = f"{'+'.join(c.axes) or 'all'} {c.kind}"
        row = rows.setdefault(
            key,
            {"link": c.link, "bandwidth_gb_s": round(c.bandwidth / 1e9, 2), "in_program": 0, "hidden": 0, "runs": 0.0,
             "gigabytes": 0.0, "seconds": 0.0, "exposed_seconds": 0.0},
        )  # fmt: skip
        row["in_program"] += 1
        row["hidden"] += c.is_hidden
        row["runs"] += c.count
        row["gigabytes"] += c.count * c.wire_bytes / 1e9
        row["seconds"] += c.seconds
        row["exposed_seconds"] += 0.0 if c.is_hidden else c.seconds
    return rows


def _callers(module: Module) -> dict[str, tuple[str, Instruction]]:
    """Computation -> one that runs it, and the instruction that does."""
    return {
        called: (name, instruction)
        for name in module.times_run
        for instruction in module.computations[name].instructions
        for called in module.called(instruction)
    }


def _outermost(callers: Mapping[str, tuple[str, Instruction]], name: str) -> str:
    """The computation whose schedule holds `name`: itself if it is a program, a loop's body or a branch, else the one
    that holds the fusion that it is."""
    while name in callers and callers[name][1].opcode not in ("while", "conditional", "call"):
        name = callers[name][0]
    return name


def _is_in_async_fusion(module: Module, callers: Mapping[str, tuple[str, Instruction]], name: str) -> bool:
    """Whether this is a part of a transfer that a TPU runs beside a matmul, or one within an async pair."""
    if name.startswith("async_collective_fusion"):
        return True
    caller, start = callers.get(name, ("", None))
    return start is not None and start.opcode == "async-start" and _is_hidden(module.computations[caller], start)


def _is_hidden(computation: Computation, start: Instruction) -> bool:
    """Whether something is computed between a start and its done."""
    if not start.opcode.endswith(("-start", "send")) or '"is_sync":true' in start.attributes:
        return False
    instructions = computation.instructions
    first = instructions.index(start)
    done = start.opcode.removesuffix("-start") + "-done"
    for instruction in instructions[first + 1 :]:
        if instruction.opcode == done and start.name in instruction.operands:
            return False
        if instruction.opcode in COMPUTE and _is_work(computation, instruction):
            return True
    return False


def _is_work(computation: Computation, instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call" and NO_COMPUTE.search(instruction.attributes):
        return False
    read = sum(shape_bytes(computation.by_name[o].shape) for o in instruction.operands if o in computation.by_name)
    return read + shape_bytes(instruction.shape) >= MIN_COMPUTE_BYTES
