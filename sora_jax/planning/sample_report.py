"""A plan of sampling as one dict, and as tables for people."""

import json
from typing import Any

import jax
from jax.sharding import Mesh
from rich.table import Table

from sora_jax.planning import hlo
from sora_jax.planning.collectives import find_collectives, summarise
from sora_jax.planning.compile import DoesNotFit, Program, unread
from sora_jax.planning.many import EXIT_DOES_NOT_FIT
from sora_jax.planning.memory import bytes_on_device
from sora_jax.planning.report import (
    add_traffic,
    collective_table,
    hidden_share,
    memory_table,
    program_bytes,
    rounded,
    seconds,
)
from sora_jax.planning.roofline import roofline
from sora_jax.planning.sampling import SampleSubject, sampling_arguments, sampling_remedies
from sora_jax.planning.topologies import GiB, Topology
from sora_jax.planning.traffic import memory_traffic


def make_sample_report(
    subject: SampleSubject,
    topology: Topology,
    mesh: Mesh,
    program: Program | DoesNotFit,
    decoding: dict[str, Any] | None,
) -> dict[str, Any]:
    """Everything that a plan of sampling says. An `exit_code` of 2 says that it, or decoding, does not fit."""
    params, frozen, rows = sampling_arguments(subject, mesh)
    report = _asked_for(subject, topology, mesh)
    report["parameters"] = sum(x.size for x in jax.tree.leaves(params))
    report["frozen_parameters"] = sum(x.size for x in jax.tree.leaves(frozen))
    absent = unread(subject.rows, program.text) if isinstance(program, Program) else ()
    read = {name: x for name, x in rows.items() if name not in absent}
    stored = {
        name: bytes_on_device(tree) for name, tree in (("parameters", params), ("frozen", frozen), ("rows", read))
    }
    report["bytes"] = {**stored, "stored": sum(stored.values())}
    if isinstance(program, DoesNotFit):
        report["bytes"] |= {"total": program.needed, "available": min(program.available, topology.usable_memory)}
        report |= {"fits": False, "compiler": program.message}
    else:
        report["bytes"] |= program_bytes(program, topology)
        report |= _costs(subject, topology, mesh, program) | {"fits": program.total <= topology.usable_memory}
    if not report["fits"]:
        report["remedies"] = sampling_remedies(subject, mesh)
    if decoding is not None:
        report["decoding"] = rounded(decoding)
    if report["fits"] and (decoding is None or decoding["fits"]):
        return report
    return {**report, "exit_code": EXIT_DOES_NOT_FIT}


def _asked_for(subject: SampleSubject, topology: Topology, mesh: Mesh) -> dict[str, Any]:
    clip, sampling = subject.clip, subject.sampling
    frames, height, width = subject.canvas
    return {
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "chip": topology.chip.kind,
        "devices": topology.num_devices,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "clips": clip.count,
        "asked": f"{clip.seconds:g} s of {clip.width}x{clip.height} at {clip.fps:g} frames/s",
        "canvas": f"{frames} frames of {width}x{height}",
        "tokens_per_clip": subject.tokens,
        "row_tokens": subject.row_tokens,
        "sampling": f"{sampling.num_steps} steps of {sampling.solver}, guidance {sampling.guidance:g}",
        "useful_flops": subject.useful_flops,
    }


def _costs(subject: SampleSubject, topology: Topology, mesh: Mesh, program: Program) -> dict[str, Any]:
    """The roofline of the whole program, and what of it is a solver step's and a clip's share."""
    module = hlo.parse(program.text)
    collectives = find_collectives(module, mesh.devices.ravel(), mesh.shape, topology)
    traffic = memory_traffic(module)
    bound = roofline(subject.useful_flops, subject.useful_flops, traffic, collectives, topology)
    return {
        "compile_seconds": round(program.seconds, 1),
        "roofline": seconds(bound) | {"memory_traffic_bytes": traffic, "unknown_loops": module.unknown_loops},
        "seconds_per_solver_step": rounded(bound.step / subject.sampling.num_steps),
        "seconds_per_sample": rounded(bound.step / subject.clip.count),
        "device_hours_per_sample": rounded(bound.step / subject.clip.count * topology.num_devices / 3600),
        "mfu_bound": round(bound.mfu, 4),
        "collectives": rounded(summarise(collectives)),
        "hidden": hidden_share(collectives),
    }


def sample_tables(report: dict[str, Any]) -> list[Table]:
    """Memory, time and collectives of sampling, then decoding."""
    shown = [_memory_table(report)]
    if "roofline" in report:
        shown += [_time_table(report), collective_table(report)]
    if "decoding" in report:
        shown.append(_decoding_table(report["decoding"]))
    return shown


def _memory_table(report: dict[str, Any]) -> Table:
    title = (
        f"{report['clips']} x {report['asked']}: {report['canvas']}, {report['tokens_per_clip']:,} tokens in rows of "
        f"{report['row_tokens']:,}; {report['parameters'] / 1e9:.3g} B parameters on {report['devices']} x "
        f"{report['chip']} ({report['topology']}), mesh {json.dumps(report['mesh'])}"
    )
    stored = "parameters", "frozen", "rows"
    return memory_table(report, title, stored, "activations, gathered weights", "tokens at t = 0")


def _time_table(report: dict[str, Any]) -> Table:
    line = report["roofline"]
    table = Table("least time", "seconds", title=report["sampling"], title_justify="left")
    table.add_row(f"compute: {report['useful_flops']:.4g} FLOPs", f"{line['compute_s']:.3f}")
    add_traffic(table, line)
    table.add_section()
    table.add_row(f"a solver step, bound by {line['bound_by']}", f"{report['seconds_per_solver_step']:.4f}")
    table.add_row("a sample", f"{report['seconds_per_sample']:.3f}")
    table.add_row("device-hours of that", f"{report['device_hours_per_sample']:,.3f}")
    table.add_row("MFU is at most", f"{report['mfu_bound']:.1%}")
    return table


def _decoding_table(plan: dict[str, Any]) -> Table:
    title = f"decoding, streamed: {plan['chunks']} chunks x {plan['tiles']} tiles of {plan['of']}, on one device"
    table = Table("", "", title=title, title_justify="left")
    table.add_row("GiB", f"{plan['bytes'] / GiB:.3f}{'' if plan['fits'] else ': does not fit: ' + plan['remedy']}")
    if "flops" in plan:
        table.add_row("FLOPs of a clip", f"{plan['flops']:.4g}")
        table.add_row("seconds of a clip at least", f"{plan['seconds_on_one_device']:.2f}")
    return table
