"""`sora-jax plan`: what a run will need and cost, on hardware that is not there.

    sora-jax plan --config configs/dit_quickstart.py --topology v5e:4x4 --mesh fsdp=16 --tokens 1e12

Compiles the real training step for the topology (with `--sample` the real sampler: `plan_sample.py`) and reads the
answer off the program. Exit code 2: it does not fit, and a remedy is named. docs/plan.md says what the numbers mean.
"""

import argparse
import dataclasses
import runpy
import sys
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.plan_sample import add_sample_arguments, plan_sample
from sora_jax.commands.shared import check_task
from sora_jax.commands.train import load_config
from sora_jax.planning.many import EXIT_DOES_NOT_FIT, markdown, run_plans
from sora_jax.planning.topologies import (
    ATTACHED,
    LEGAL,
    Topology,
    attached_topology,
    describe_devices,
    parse_topology,
    prepare_environment,
)

SHOWN = 10
"""So many of the ranked layouts are shown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax plan`."""
    parser.add_argument("--config", metavar="FILE.py", help="the run's config; --config.name=value sets one field")
    parser.add_argument("--topology", metavar="KIND:SHAPE", help=LEGAL)
    parser.add_argument("--list", metavar="FILE.py", help="in place of both: every plan of its PLANS, one by one")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices of that shape, joined by the network")
    parser.add_argument("--mesh", metavar="AXIS=N,…", help="in place of config.train.mesh, such as fsdp=128,context=4")
    parser.add_argument(
        "--search", type=int, default=0, metavar="N", help="rank meshes, accumulation and remat; compile the best N"
    )
    parser.add_argument("--measure", action="store_true", help="run the step too, where the devices are attached")
    parser.add_argument(
        "--tokens",
        type=float,
        default=1e12,
        help="video tokens of a generator's training",
    )
    parser.add_argument("--segments", type=int, default=4, help="clips in a row, for the FLOPs of attention")
    parser.add_argument("--latent_channels", type=int, default=16, help="of the autoencoder's latents")
    parser.add_argument("--vocab_size", type=int, default=32_128, help="of the tokenizer of a trained text encoder")
    parser.add_argument("--stage", type=int, default=-1, help="of config.data.stages, from 0 on (default: the last)")
    add_sample_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prints tables to stderr, and returns the same as numbers."""
    if args.list:
        return run_list(args)
    if not (args.config and args.topology):
        raise UserError("plan needs --config FILE.py and --topology KIND:SHAPE, or --list FILE.py")
    config = load_config(args.config, args.overrides).to_dict()
    check_positive(args)
    mesh = parse_mesh(args.mesh) if args.mesh else {}
    topology = find_topology(args)
    check_task(config, "autoencoder", "diffusion")
    config = choose_stage(config, args.stage)  # it imports jax, which reads the environment that the topology needs
    if args.sample:
        return plan_sample(config, mesh, topology, args)
    if mesh:
        config["train"]["mesh"] = mesh
    return plan(config, topology, args)


def run_list(args: argparse.Namespace) -> dict[str, Any]:
    """Every plan of a list; a Markdown table goes to stderr. Exit code 2 if one does not fit."""
    if not Path(args.list).is_file():
        raise UserError(f"there is no list of plans {args.list}; see configs/plans/ for what there is")
    plans = runpy.run_path(args.list).get("PLANS")
    if not plans:
        raise UserError(f"{args.list} has no PLANS, or none in it")
    reports = list(run_plans(plans, ("--tokens", str(args.tokens), *args.overrides)))
    print(markdown(reports), file=sys.stderr)
    fits = all(report["fits"] for report in reports)
    return {"plans": reports, "fits": fits, **({} if fits else {"exit_code": EXIT_DOES_NOT_FIT})}


def find_topology(args: argparse.Namespace) -> Topology:
    """The topology that is asked for, with the environment that its compiler needs."""
    if args.topology == ATTACHED:
        return attached_topology()
    topology = parse_topology(args.topology, args.slices)
    if args.measure and topology.chip.platform != "cpu":
        raise UserError(f"{args.topology} is planned, not attached: --measure runs on --topology cpu:N or attached")
    prepare_environment(topology)
    return topology


def plan(config: dict[str, Any], topology: Topology, args: argparse.Namespace) -> dict[str, Any]:
    """Compiles and reports. jax starts here, in the environment of the topology."""
    from rich.console import Console

    from sora_jax.parallel import make_mesh
    from sora_jax.planning.autoencoder_subject import autoencoder_subject
    from sora_jax.planning.compile import Program, compile_step
    from sora_jax.planning.measure import measure
    from sora_jax.planning.report import make_report, tables
    from sora_jax.planning.subjects import Assumptions, diffusion_subject

    assumed = Assumptions(args.latent_channels, args.vocab_size, args.segments)
    devices = describe_devices(topology)
    if args.search:
        return search(config, assumed, topology, devices, args)
    if config["train"].get("task") == "autoencoder":
        subject = autoencoder_subject(config)
        budget = float(subject.train.num_steps * subject.tokens)
    else:
        subject, budget = diffusion_subject(config, assumed), args.tokens
    mesh = make_mesh(subject.train.mesh, devices)
    program = compile_step(subject, mesh)
    report = make_report(subject, topology, mesh, program, budget)
    if args.measure and isinstance(program, Program):
        report["measured"] = measure(subject, mesh, program)
    console = Console(stderr=True)
    for table in tables(report):
        console.print(table)
    return report


def search(
    config: dict[str, Any], assumed: Any, topology: Topology, devices: list[Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Compiles the layouts that rank first; the best that fits is returned, with all that were looked at."""
    from rich.console import Console

    from sora_jax.parallel import make_mesh
    from sora_jax.planning.compile import compile_step
    from sora_jax.planning.report import make_report, tables
    from sora_jax.planning.search import rank, ranking
    from sora_jax.planning.subjects import diffusion_subject

    console, candidates = Console(stderr=True), rank(config, assumed, topology, devices)
    console.print(ranking(candidates[:SHOWN]))
    reports = []
    for candidate in candidates[: args.search]:
        subject, mesh = diffusion_subject(candidate.config(config), assumed), make_mesh(candidate.mesh, devices)
        reports.append(make_report(subject, topology, mesh, compile_step(subject, mesh), args.tokens))
        for table in tables(reports[-1])[:2]:
            console.print(table)
    fitting = [report for report in reports if report["fits"]]
    best = max(fitting, key=lambda report: report["mfu_bound"]) if fitting else reports[0]
    return {**best, "ranked": [dataclasses.asdict(c) for c in candidates[:SHOWN]], "compiled": reports}


def choose_stage(config: dict[str, Any], number: int) -> dict[str, Any]:
    """The config of one stage of a generator's run, which is said; a config without stages as it is."""
    if not config["data"].get("stages") and number == -1:
        return config
    from sora_jax.objectives.data_stages import num_stages, one_stage

    chosen, count = one_stage(config, number), num_stages(config)
    print(f"stage {number % count} of {count} of config.data.stages", file=sys.stderr)
    return chosen


def parse_mesh(text: str) -> dict[str, int]:
    """`fsdp=128,context=4` as a dict. Raises UserError for anything else."""
    mesh = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if not size.isdigit() or int(size) < 1 or axis in mesh:
            raise UserError(f"--mesh is '{text}', but must look like fsdp=128,context=4, each axis once")
        mesh[axis] = int(size)
    return mesh


def check_positive(args: argparse.Namespace) -> None:
    """Raises UserError for a number that must be above 0."""
    for name in ("tokens", "segments", "latent_channels", "vocab_size"):
        if not getattr(args, name) > 0:
            raise UserError(f"--{name} is {getattr(args, name)}, but must be above 0")
