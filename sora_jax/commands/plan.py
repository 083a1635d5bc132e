"""`sora-jax plan`: what a run will need and cost, on hardware that is not there.

    sora-jax plan --config configs/dit_quickstart.py --topology v5e:4x4 --mesh fsdp=16 --tokens 1e12

Compiles the real training step for the topology and reads the answer off the program. Exit code 2: it does not fit, and
a remedy is named. docs/plan.md says what the numbers mean.
"""

import argparse
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.train import load_config
from sora_jax.planning.topologies import (
    ATTACHED,
    LEGAL,
    Topology,
    attached_topology,
    describe_devices,
    parse_topology,
    prepare_environment,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax plan`."""
    parser.add_argument(
        "--config", required=True, metavar="FILE.py", help="the run's config; --config.name=value sets one field"
    )
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help=LEGAL)
    parser.add_argument("--slices", type=int, default=1, help="TPU slices of that shape, joined by the network")
    parser.add_argument("--mesh", metavar="AXIS=N,…", help="in place of config.train.mesh, such as fsdp=128,context=4")
    parser.add_argument("--measure", action="store_true", help="run the step too, where the devices are attached")
    parser.add_argument("--tokens", type=float, default=1e12, help="video tokens of the whole training")
    parser.add_argument("--segments", type=int, default=4, help="clips in a row, for the FLOPs of attention")
    parser.add_argument("--latent_channels", type=int, default=16, help="of the autoencoder's latents")
    parser.add_argument("--vocab_size", type=int, default=32_128, help="of the tokenizer of a trained text encoder")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prints tables to stderr, and returns the same as numbers."""
    config = load_config(args.config, args.overrides).to_dict()
    if args.mesh:
        config["train"]["mesh"] = parse_mesh(args.mesh)
    check_positive(args)
    return plan(config, find_topology(args), args)


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
    from sora_jax.planning.compile import Program, compile_step
    from sora_jax.planning.measure import measure
    from sora_jax.planning.report import make_report, tables
    from sora_jax.planning.subjects import Assumptions, diffusion_subject

    subject = diffusion_subject(config, Assumptions(args.latent_channels, args.vocab_size, args.segments))
    mesh = make_mesh(subject.train.mesh, describe_devices(topology))
    program = compile_step(subject, mesh)
    report = make_report(subject, topology, mesh, program, args.tokens)
    if args.measure and isinstance(program, Program):
        report["measured"] = measure(subject, mesh, program)
    console = Console(stderr=True)
    for table in tables(report):
        console.print(table)
    return report


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
