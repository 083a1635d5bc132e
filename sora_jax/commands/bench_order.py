"""`sora-jax bench order`: the sample ids of a run's steps, on any number of hosts and workers and after restarts.

    sora-jax bench order --config configs/dit_quickstart.py --config.data.path=LATENTS --hosts 1,2,4 --workers 0,1,4

Every combination starts at the same places, of which one is in the middle of what it has read already and others are
around the starts of stages; what is compared is the digest of all arrays of each step's global batch. Exit code 1 if
any differs.
"""

import argparse
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from data_pipeline.errors import UserError
from data_pipeline.prefetch import make_stream
from data_pipeline.stages import Stage, StagedSource
from sora_jax.commands.shared import check_task
from sora_jax.commands.train import load_config

EXIT_DIFFERENT = 1
PER_HOST = ("num_unreadable", "reference_tokens")
"""What is no array of rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench order`."""
    parser.add_argument("--config", required=True, metavar="FILE.py", help="a generator's run, with its data")
    parser.add_argument("--hosts", type=_numbers, default=[1, 2, 4], help="numbers of hosts, with commas")
    parser.add_argument("--workers", type=_numbers, default=[0, 1, 4], help="numbers of workers of each, with commas")
    parser.add_argument("--steps", type=int, default=6, help="steps from each place")
    parser.add_argument("--places", type=_numbers, default=[0, 3, 1_000_000], help="first steps, beside the stages'")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Whether all combinations read the same, and the first sample ids of each place."""
    config = load_config(args.config, args.overrides).to_dict()
    check_task(config, "diffusion")
    from sora_jax.objectives.data_stages import data_stages  # jax takes a second, and only the config needs it

    stages = data_stages(config)
    places = sorted({*args.places, *(max(0, stage.start - args.steps // 2) for stage in stages[1:])})
    whole = StagedSource(stages)
    expected = {step: digest([whole[step]]) for place in places for step in range(place, place + args.steps)}
    combinations = [(hosts, workers) for hosts in args.hosts for workers in args.workers]
    different = [
        f"step {step} with {hosts} hosts and {workers} workers"
        for hosts, workers in track(combinations, "reading", console=Console(stderr=True), transient=True)
        for step, found in _read(stages, whole.scans, hosts, workers, places, args.steps)
        if found != expected[step]
    ]
    first = {str(place): [i for i in whole[place]["sample_ids"].ravel().tolist() if i >= 0][:8] for place in places}
    result = {
        "combinations": combinations,
        "steps": sorted(expected),
        "different": different,
        "digest": digest_of(expected),
        "first_sample_ids": first,
    }
    return result | ({"exit_code": EXIT_DIFFERENT} if different else {})


def _read(
    stages: Sequence[Stage], scans: Sequence[tuple[int, ...]], hosts: int, workers: int, places: list[int], steps: int
) -> Iterator[tuple[int, str]]:
    """(step, digest of the global batch that these hosts read together), started anew at each place."""
    if uneven := [stage.stream.batch_rows for stage in stages if stage.stream.batch_rows % hosts]:
        raise UserError(f"a step of {uneven[0]} rows does not divide over {hosts} hosts; leave {hosts} out of --hosts")
    shares = [stage.stream.batch_rows // hosts for stage in stages]
    rows = [[(host * share, (host + 1) * share) for share in shares] for host in range(hosts)]
    sources = [StagedSource(stages, "train", own, scans) for own in rows]
    for place in places:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(make_stream(source, place, steps, workers)) for source in sources]
            yield from ((step, digest(list(parts))) for step, parts in enumerate(zip(*streams, strict=True), place))


def digest(parts: list[Any]) -> str:
    """SHA-256 of the arrays of a global batch that hosts hold in parts."""
    names = sorted(name for name in parts[0] if name not in PER_HOST)
    found = hashlib.sha256()
    for name in names:
        found.update(name.encode() + np.concatenate([part[name] for part in parts]).tobytes())
    return found.hexdigest()


def digest_of(digests: dict[int, str]) -> str:
    """Of all steps together, to compare machines by."""
    return hashlib.sha256("".join(digests[step] for step in sorted(digests)).encode()).hexdigest()


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas, such as 1,2,4") from error
