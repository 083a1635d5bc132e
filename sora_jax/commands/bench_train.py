"""`sora-jax bench train`: the training step of a generator's config, on random rows of its shapes; no data is read.

    sora-jax bench train --config configs/dit_quickstart.py --segments 2
    sora-jax bench train --config configs/dit_quickstart.py --segments 2 --pytorch

Clips of one length fill each row. `--pytorch` measures a PyTorch DiT of the same shape first, in the same session, with
torch.compile (`--pytorch eager`: without); it needs `pip install sora-jax[torch]`.
"""

import argparse
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.beside_pytorch import importing, leave_memory
from sora_jax.commands.plan import choose_stage
from sora_jax.commands.shared import check_task
from sora_jax.commands.train import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench train`."""
    parser.add_argument("--config", required=True, metavar="FILE.py", help="a generator's run")
    add_data_arguments(parser)
    parser.add_argument("--stage", type=int, default=-1, help="of config.data.stages, from 0 on (default: the last)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts")
    parser.add_argument(
        "--pytorch", nargs="?", const="compile", choices=("compile", "eager"), help="a PyTorch DiT beside it"
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What a config does not say, because a run learns it from its data."""
    parser.add_argument("--segments", type=int, default=1, help="clips of one length that fill a row")
    parser.add_argument("--text_tokens", type=int, default=0, help="tokens of each caption (0: they fill the text row)")
    parser.add_argument("--latent_channels", type=int, default=16, help="of the autoencoder")
    parser.add_argument("--vocab_size", type=int, default=8192, help="of the tokenizer")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time, rates and bytes of one step."""
    if min(args.steps, args.rounds) < 1:
        raise UserError(f"--steps is {args.steps} and --rounds {args.rounds}, but both must be at least 1")
    if args.pytorch:
        leave_memory()
    config = load_config(args.config, args.overrides).to_dict()
    check_task(config, "diffusion")
    config = choose_stage(config, args.stage)
    import jax  # after that, and after the config is known to be good

    from sora_jax.evaluation.step_speed import describe_devices, measure_train_step, rates
    from sora_jax.objectives.synthetic import without_data

    synthetic = without_data(config, read_sizes(args))
    batch, devices = synthetic.batch(), describe_devices()
    theirs = _measure_pytorch(args, synthetic, batch, devices) if args.pytorch else None
    measured = measure_train_step(synthetic.task, synthetic.train, batch, args.steps, args.rounds)
    tokens, flops = int((batch["segment_ids"] > 0).sum()), synthetic.task.flops(batch)
    shapes = jax.eval_shape(synthetic.task.init, jax.random.key(0))
    model = synthetic.config.model
    result = {
        **devices,
        "mesh": {axis: size for axis, size in synthetic.train.mesh.items() if size > 1},
        "parameters": sum(x.size for x in jax.tree.leaves(shapes)),
        "width": model.width,
        "depth": model.depth,
        "heads": model.num_heads,
        "dtype": model.dtype,
        "remat": model.remat,
        "rows": synthetic.train.batch_rows,
        "microbatches": synthetic.train.microbatches,
        "row_tokens": synthetic.layout.row_tokens,
        "row_text": synthetic.layout.row_text,
        "segment_mix": synthetic.mix(),
        **measured,
        **rates(measured["step_s"], tokens, flops, devices["num_devices"]),
    }
    if theirs is not None:
        faster = theirs["step_s"] / measured["step_s"]
        result["pytorch"] = {**theirs, "tokens_per_s": tokens / theirs["step_s"], "its_time_over_ours": faster}
    return result


def read_sizes(args: argparse.Namespace) -> Any:
    """The options of `add_data_arguments`."""
    from sora_jax.objectives.synthetic import DataSizes

    return DataSizes(args.latent_channels, args.vocab_size, args.segments, args.text_tokens)


def _measure_pytorch(
    args: argparse.Namespace, synthetic: Any, batch: dict[str, Any], devices: dict[str, Any]
) -> dict[str, Any]:
    if devices["platform"] != "cpu" and devices["num_devices"] > 1:
        raise UserError(f"the PyTorch counterpart runs on one device, but there are {devices['num_devices']}")
    with importing("torch"):
        from sora_jax.evaluation.torch_step import measure_torch_step
    # Clips of one length that fill their rows need no mask.
    fills = synthetic.clip_tokens * args.segments == synthetic.layout.row_tokens
    fills &= synthetic.text_tokens * args.segments == synthetic.layout.row_text
    return measure_torch_step(
        *(synthetic.config, synthetic.optim, batch, args.segments if fills else 0, synthetic.train.microbatches),
        is_compiled=args.pytorch == "compile",
        num_steps=args.steps,
        rounds=args.rounds,
    )
