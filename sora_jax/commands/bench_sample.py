"""`sora-jax bench sample`: sampling with a generator's config on random captions, or with a trained run's parameters.

    sora-jax bench sample --config configs/dit_quickstart.py --segments 2 --steps 20 --guidance 3
    sora-jax bench sample --run runs/quickstart/dit --segments 2 --steps 20 --guidance 3

As `sora-jax sample` does it: packed rows on one device, all solver steps in one program. Clips of one length fill each
row. The autoencoder's decoding is not part of it.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sora_jax.commands.bench_train import add_data_arguments, read_sizes
from sora_jax.commands.train import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench sample`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE.py", help="a generator's run; its parameters are random")
    what.add_argument("--run", type=Path, help="a generator's run directory; its channels and vocabulary hold")
    add_data_arguments(parser)
    parser.add_argument("--steps", type=int, default=30, help="solver steps")
    parser.add_argument("--guidance", type=float, default=6.0, help="guidance scale; 1 is none, and half of the work")
    parser.add_argument("--solver", default="euler", help="euler, heun, midpoint, dpm++ or unipc")
    parser.add_argument("--rows_per_batch", type=int, default=8, help="packed rows that are sampled at once")
    parser.add_argument("--rounds", type=int, default=3, help="times that it is sampled, of which the best counts")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time of a batch of samples, its rates and bytes."""
    if min(args.rounds, args.rows_per_batch) < 1:
        raise UserError(
            f"--rounds is {args.rounds} and --rows_per_batch {args.rows_per_batch}; both must be at least 1"
        )
    synthetic, params = _random(args) if args.run is None else _trained(args)
    from sora_jax.diffusion.denoiser import SamplingConfig
    from sora_jax.evaluation.sampling_speed import measure_sampling
    from sora_jax.evaluation.step_speed import describe_devices, rates

    sampling = SamplingConfig(args.steps, args.guidance, args.solver)
    batch = synthetic.batch(args.rows_per_batch)
    measured, flops = measure_sampling(synthetic, params, batch, sampling, args.rounds)
    tokens, model = int((batch["segment_ids"] > 0).sum()), synthetic.config.model
    return {
        **describe_devices(),
        "width": model.width,
        "depth": model.depth,
        "heads": model.num_heads,
        "dtype": model.dtype,
        "rows": args.rows_per_batch,
        "row_tokens": synthetic.layout.row_tokens,
        "segment_mix": synthetic.mix(),
        "solver": {"name": args.solver, "steps": args.steps, "guidance": args.guidance},
        **measured,
        **rates(measured["batch_s"], tokens, flops, 1),
    }


def _random(args: argparse.Namespace) -> tuple[Any, Any]:
    config = load_config(args.config, args.overrides).to_dict()
    import jax

    from sora_jax.objectives.synthetic import without_data

    synthetic = without_data(config, read_sizes(args))
    return synthetic, jax.jit(synthetic.task.init)(jax.random.key(0))["dit"]


def _trained(args: argparse.Namespace) -> tuple[Any, Any]:
    if args.overrides:
        raise UserError(f"--run brings its own config; leave out {args.overrides[0]}, or give --config")
    from sora_jax.objectives.data_stages import stream_config
    from sora_jax.objectives.synthetic import without_data
    from sora_jax.training.checkpoint import load_params

    loaded = load_params(args.run, None, ema=True)
    if "dit" not in loaded.params:
        raise UserError(f"{args.run} is no generator's run: it trained {', '.join(loaded.params)}")
    params = loaded.params["dit"]
    patch_values = np.shape(params["patch_in"]["kernel"])[0]
    if "text_encoder" in params:
        args.vocab_size = np.shape(params["text_encoder"]["embedding"])[0]
    args.latent_channels = patch_values // math.prod(stream_config(loaded.config).patch_size)
    return without_data(loaded.config, read_sizes(args)), params
