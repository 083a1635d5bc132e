"""`sora-jax bench features`: samples a second through the networks of FID and FVD, and beside the same in PyTorch.

    sora-jax bench features --pytorch
    sora-jax bench features --networks videomae --videomae base --pytorch

Weights are random; nothing is read. Pixels come from the host's memory and features go there, a micro-batch of
`evaluate` at a time, on one device, in float32. Compilation and the first run do not count. `--pytorch` runs modules
of the published layouts with the same weights in turn with ours (`--pytorch compile`: with torch.compile), and says how
far apart the features are; it needs `pip install sora-jax[torch]`.
"""

import argparse
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.bench_autoencoder import race
from sora_jax.commands.beside_pytorch import importing, leave_memory
from sora_jax.config import choose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench features`."""
    parser.add_argument("--networks", default="inception,i3d", metavar="NAME,…", help="of inception, i3d, videomae")
    parser.add_argument(
        "--videomae", default="giant", choices=("giant", "base"), help="its size: giant is the published one, 4 GB"
    )
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds, of which the best are compared")
    parser.add_argument(
        "--pytorch", nargs="?", const="eager", choices=("compile", "eager"), help="the same networks beside it"
    )
    parser.add_argument("--thin", action="store_true", help="small networks on small pictures: whether it works at all")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A line of measurements for each network."""
    if args.rounds < 1:
        raise UserError(f"--rounds is {args.rounds}, but must be at least 1")
    if args.pytorch:
        leave_memory()
    from sora_jax.evaluation.feature_speed import SUBJECTS
    from sora_jax.evaluation.step_speed import describe_devices

    names = args.networks.split(",")
    for name in names:
        choose(SUBJECTS, name, "--networks")
    result = describe_devices() | {"dtype": "float32", "rounds": args.rounds}
    if args.pytorch:
        with importing("torch"):
            import torch  # pyright: ignore[reportMissingImports]
        result |= {
            "pytorch": torch.__version__,
            "threads": torch.get_num_threads(),
            "is_compiled": args.pytorch != "eager",
        }
    return result | {"networks": {name: _measure(name, args) for name in names}}


def _measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network, whose weights are gone before the next one's are there."""
    from sora_jax.evaluation.feature_speed import (
        SUBJECTS,
        as_evaluated,
        compare,
        draw_clips,
        features_alone,
        random_weights,
    )

    weights = random_weights(name, args.thin, args.videomae)
    network, protocol = as_evaluated(weights)
    side = SUBJECTS[name].thin_side if args.thin else protocol.side
    clips = draw_clips(network.micro_batch, protocol, side)
    contenders: dict[str, Any] = {"ours": features_alone(network)}
    if args.pytorch:
        from sora_jax.evaluation.torch_feature_speed import TorchFeatures

        contenders["pytorch"] = TorchFeatures(weights, protocol, side, args.pytorch == "compile")
    seconds, made = race(contenders, clips, args.rounds)
    parameters = sum(tensor.size for tensor in weights.tensors.values())
    return {"shape": list(clips.shape), "parameters": parameters} | compare(seconds, made, len(clips))
