"""A plan as one dict (the last line of stdout) and as tables for people."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from sora_jax.planning import hlo
from sora_jax.planning.collectives import Collective, find_collectives, summarise
from sora_jax.planning.compile import DoesNotFit, Program, abstract_arguments
from sora_jax.planning.many import EXIT_DOES_NOT_FIT
from sora_jax.planning.memory import remedies, stored_bytes
from sora_jax.planning.roofline import DAY, Roofline, roofline
from sora_jax.planning.subjects import Subject
from sora_jax.planning.topologies import GiB, Topology
from sora_jax.planning.traffic import memory_traffic


def make_report(
    subject: Subject, topology: Topology, mesh: Mesh, program: Program | DoesNotFit, budget_tokens: float
) -> dict[str, Any]:
    """Everything that a plan says; the budget is in the subject's unit. An `exit_code` of 2: it does not fit."""
    with jax.set_mesh(mesh):
        state, frozen, batch = abstract_arguments(subject, mesh)
    stored = stored_bytes(state, frozen, batch, program.unread if isinstance(program, Program) else ())
    report: dict[str, Any] = {
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "chip": topology.chip.kind,
        "devices": topology.num_devices,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "batch_rows": subject.train.batch_rows,
        "microbatches": subject.train.microbatches,
        "remat": subject.remat,
        "mix": subject.mix,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "frozen_parameters": sum(x.size for x in jax.tree.leaves(frozen)),
        f"{subject.unit}_per_step": subject.tokens,
        "useful_flops": subject.useful_flops,
        "recomputed_flops": subject.recomputed_flops,
        "bytes": {**stored, "stored": sum(stored.values())},
    }
    if isinstance(program, DoesNotFit):
        report["bytes"] |= {"total": program.needed, "available": min(program.available, topology.usable_memory)}
        return {**report, **_refused(subject, mesh), "compiler": program.message}
    report["bytes"] |= program_bytes(program, topology)
    report["compile_seconds"] = round(program.seconds, 1)
    report |= _costs(subject, topology, mesh, program, budget_tokens)
    fits = program.total <= topology.usable_memory
    return {**report, "fits": True} if fits else {**report, **_refused(subject, mesh)}


def program_bytes(program: Program, topology: Topology) -> dict[str, int]:
    """What the compiler says of one device's memory."""
    return {
        "arguments": program.arguments,
        "outputs": program.outputs,
        "aliased": program.aliased,
        "temporaries": program.temporaries,
        "offloaded_to_host": program.offloaded,
        "code": program.code,
        "total": program.total,
        "available": topology.usable_memory,
    }


def _refused(subject: Subject, mesh: Mesh) -> dict[str, Any]:
    return {"fits": False, "remedies": remedies(subject, mesh), "exit_code": EXIT_DOES_NOT_FIT}


def _costs(subject: Subject, topology: Topology, mesh: Mesh, program: Program, budget_tokens: float) -> dict[str, Any]:
    """The step's roofline, its collectives, and what a budget of tokens takes at that."""
    module = hlo.parse(program.text)
    collectives = find_collectives(module, mesh.devices.ravel(), mesh.shape, topology)
    traffic = memory_traffic(module)
    executed = subject.useful_flops + subject.recomputed_flops
    bound = roofline(subject.useful_flops, executed, traffic, collectives, topology)
    tokens_per_s = subject.tokens / bound.step
    days = budget_tokens / tokens_per_s / DAY
    return {
        "roofline": seconds(bound) | {"memory_traffic_bytes": traffic, "unknown_loops": module.unknown_loops},
        "mfu_bound": round(bound.mfu, 4),
        f"{subject.unit}_per_s": round(tokens_per_s, 1),
        "budget": {
            subject.unit: budget_tokens,
            "days": round(days, 2),
            "device_hours": round(days * 24 * topology.num_devices, 1),
        },
        "collectives": rounded(summarise(collectives)),
        "hidden": hidden_share(collectives),
    }


def seconds(bound: Roofline) -> dict[str, Any]:
    """A roofline as numbers."""
    return {
        "step_s": round(bound.step, 5),
        "compute_s": round(bound.compute, 5),
        "memory_s": round(bound.memory, 5),
        "hidden_s": {link: round(s, 5) for link, s in bound.hidden.items()},
        "exposed_s": {link: round(s, 5) for link, s in bound.exposed.items()},
        "bound_by": bound.bound_by,
    }


def hidden_share(collectives: list[Collective]) -> dict[str, float]:
    """How many collectives of the program, and how many of the seconds on links, compute hides."""
    total = sum(c.seconds for c in collectives)
    return {
        "collectives": len(collectives),
        "hidden": sum(c.is_hidden for c in collectives),
        "hidden_share_of_time": round(sum(c.seconds for c in collectives if c.is_hidden) / total, 4) if total else 1.0,
    }


def rounded(value: Any) -> Any:
    """Numbers of a report with as many digits as mean something."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return float(np.format_float_positional(value, 4, fractional=False)) if isinstance(value, float) else value


def tables(report: dict[str, Any]) -> list[Table]:
    """Memory, time and collectives of a report, and what was measured."""
    shown = [_memory_table(report)]
    if "roofline" in report:
        shown += [_time_table(report), collective_table(report)]
    if "measured" in report:
        shown.append(_measured_table(report["measured"]))
    return shown


def _measured_table(measured: dict[str, Any]) -> Table:
    table = Table("on the first device", "predicted", "measured")
    for name in ("arguments", "outputs", "peak"):
        row = measured[name]
        table.add_row(
            f"{name}, bytes", f"{row['predicted']:,}", "-" if row["measured"] is None else f"{row['measured']:,}"
        )
    table.add_row("step, seconds", "", f"{measured['step_s']:.4f}")
    return table


def _memory_table(report: dict[str, Any]) -> Table:
    slices = f" x {report['num_slices']} slices" if report["num_slices"] > 1 else ""
    title = (
        f"{report['parameters'] / 1e9:.3g} B parameters on {report['devices']} x {report['chip']} "
        f"({report['topology']}{slices}), mesh {json.dumps(report['mesh'])}, "
        f"{report['batch_rows']} rows in {report['microbatches']} microbatches, remat {report['remat']}"
    )
    stored = "parameters", "optimizer", "ema", "frozen", "batch"
    return memory_table(report, title, stored, "activations, gradients, gathered weights")


def memory_table(
    report: dict[str, Any], title: str, stored: Sequence[str], temporaries: str, result: str | None = None
) -> Table:
    """Bytes of one device: of each of `stored`, of what the program needs beside, called `temporaries`, and of what it
    returns, if that is called `result` and reuses no argument."""
    table = Table("bytes on one device", "GiB", title=title, title_justify="left")
    sizes = report["bytes"]
    rows = {name: sizes[name] for name in stored}
    if "temporaries" in sizes:
        rows |= {"padding of layouts": sizes["arguments"] - sizes["stored"], temporaries: sizes["temporaries"]}
        rows |= {} if result is None else {result: sizes["outputs"] - sizes["aliased"]}
        rows["code"] = sizes["code"]
    for name, size in rows.items():
        table.add_row(name, f"{size / GiB:.3f}")
    table.add_section()
    table.add_row("in all", f"{sizes['total'] / GiB:.3f}")
    verdict = "fits" if report["fits"] else "does not fit: " + "; or ".join(report["remedies"])
    table.add_row(f"available: {verdict}", f"{sizes['available'] / GiB:.3f}")
    return table


def _time_table(report: dict[str, Any]) -> Table:
    line = report["roofline"]
    table = Table("least time of a step", "seconds", title=report["mix"], title_justify="left")
    table.add_row(f"compute: {report['useful_flops']:.3g} FLOPs and {report['recomputed_flops']:.3g} recomputed",
                  f"{line['compute_s']:.4f}")  # fmt: skip
    add_traffic(table, line)
    table.add_section()
    table.add_row(f"step, bound by {line['bound_by']}", f"{line['step_s']:.4f}")
    table.add_row("MFU is at most", f"{report['mfu_bound']:.1%}")
    budget = report["budget"]
    unit = next(iter(budget))
    table.add_row(f"{unit}/s at most", f"{report[f'{unit}_per_s']:,.0f}")
    table.add_row(f"{budget[unit]:.3g} {unit} take at least", f"{budget['days']:,.1f} days")
    table.add_row("device-hours of that", f"{budget['device_hours']:,.0f}")
    return table


def add_traffic(table: Table, line: dict[str, Any]) -> None:
    """Rows for what memory and links take."""
    table.add_row(f"memory: {line['memory_traffic_bytes'] / 1e9:.0f} GB", f"{line['memory_s']:.4f}")
    for name in ("hidden", "exposed"):
        for link, seconds in line[f"{name}_s"].items():
            table.add_row(f"{link}, {name}", f"{seconds:.4f}")


def collective_table(report: dict[str, Any]) -> Table:
    """What is sent between devices, by mesh axes and kind."""
    share = report["hidden"]
    title = (
        f"{share['hidden']} of {share['collectives']} collectives hidden, {share['hidden_share_of_time']:.1%} of time"
    )
    table = Table("axes and kind", "link", "GB/s", "runs", "GB sent", "seconds", "exposed", title=title)
    for name, row in report["collectives"].items():
        table.add_row(
            name, row["link"], f"{row['bandwidth_gb_s']:g}", f"{row['runs']:.0f}", f"{row['gigabytes']:.3g}",
            f"{row['seconds']:.4f}", f"{row['exposed_seconds']:.4f}",
        )  # fmt: skip
    return table
