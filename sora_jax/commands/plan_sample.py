"""`sora-jax plan --sample`: what a clip will need and cost, sampled on hardware that is not there.

    sora-jax plan --sample --config configs/dit_7b.py --topology v5p:8x8x8 --size 1920x1080 --seconds 60 --fps 24 \
        --steps 50 --autoencoder configs/autoencoder_production.py --tile 512
"""

import argparse
from typing import Any

from sora_jax.commands.train import load_config
from sora_jax.planning.topologies import Topology, describe_devices


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that only `--sample` reads."""
    group = parser.add_argument_group("with --sample")
    group.add_argument("--sample", action="store_true", help="plan sampling a clip in place of a training step")
    group.add_argument("--size", default="1920x1080", help="WIDTHxHEIGHT in pixels")
    group.add_argument("--seconds", type=float, default=60.0, help="length of the clip")
    group.add_argument("--fps", type=float, default=24.0, help="frames per second")
    group.add_argument("--rows", type=int, default=1, help="clips that are sampled at once")
    group.add_argument("--steps", type=int, default=50, help="solver steps")
    group.add_argument("--guidance", type=float, default=6.0, help="guidance scale; 1 is none")
    group.add_argument("--solver", default="unipc", help="as of `sample`")
    group.add_argument("--autoencoder", metavar="FILE.py", help="config of what decodes; else 4x8x8, not decoded")
    group.add_argument("--tile", type=int, default=0, help="decode frames in tiles of so many pixels; 0: whole")


def plan_sample(
    config: dict[str, Any], mesh_shape: dict[str, int], topology: Topology, args: argparse.Namespace
) -> dict[str, Any]:
    """Compiles and reports. jax starts here, in the environment of the topology."""
    from rich.console import Console

    from sora_jax.config import build_config
    from sora_jax.diffusion.denoiser import SamplingConfig
    from sora_jax.generation.options import parse_size
    from sora_jax.models.autoencoder import AutoencoderConfig
    from sora_jax.parallel import make_mesh
    from sora_jax.planning.compile import compile_lowered
    from sora_jax.planning.decoding import plan_decoding
    from sora_jax.planning.sample_report import make_sample_report, sample_tables
    from sora_jax.planning.sampling import Clip, lower_sampling, sample_subject, sampling_mesh

    sampling = SamplingConfig(args.steps, args.guidance, args.solver)
    width, height = parse_size(args.size)
    clip = Clip(width, height, args.seconds, args.fps, args.rows)
    described = load_config(args.autoencoder, []).to_dict() if args.autoencoder else {}
    codec = build_config(
        AutoencoderConfig, described.get("model", {"latent_channels": args.latent_channels}), "the autoencoder's model"
    )
    devices = describe_devices(topology)
    shape = mesh_shape or sampling_mesh(len(devices), clip.count)
    mesh = make_mesh(shape, devices)
    subject = sample_subject(config, codec, clip, sampling, args.vocab_size, mesh.shape)
    program = compile_lowered(lower_sampling(subject, mesh))
    decoding = plan_decoding(codec, subject.latent_shape, args.tile, topology, devices[0]) if args.autoencoder else None
    report = make_sample_report(subject, topology, mesh, program, decoding)
    console = Console(stderr=True)
    for table in sample_tables(report):
        console.print(table)
    return report
