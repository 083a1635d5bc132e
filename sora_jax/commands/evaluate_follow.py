"""`sora-jax evaluate --follow`: every new checkpoint of a run is scored while it trains, by a process beside it.

    sora-jax evaluate --follow --run RUN --metric synth-fd,synth-fvd,probes --real CLIPS --num_generated 96

Samples are drawn with the EMA for the same prompts and seeds at each step. Results and samples go to RUN/evaluations
(or `--out`), the scores also to the run's metrics.jsonl, as rows of kind "score". Ends with the run, or without a new
checkpoint for `--patience` seconds; started again, it goes on.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.shared import plain
from sora_jax.evaluation.follow import (
    Pace,
    add_rows,
    last_step,
    new_checkpoints,
    score_if_there,
    scored_steps,
    write_result,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `--follow`."""
    group = parser.add_argument_group("--follow")
    group.add_argument("--follow", action="store_true", help="score each checkpoint of --run as it comes")
    group.add_argument("--every", type=float, default=Pace.every_s, metavar="S", help="seconds between looks")
    group.add_argument("--patience", type=float, default=Pace.patience_s, metavar="S", help="ends without a new one")


def run(
    args: argparse.Namespace,
    metrics: Sequence[str],
    measure: Callable[[argparse.Namespace, Sequence[str]], dict[str, Any]],
) -> dict[str, Any]:
    """Follows until the run's last step. Raises UserError for what is no run, and as the metrics do."""
    if args.run is None:
        raise UserError("--follow needs --run RUN, the run to follow")
    if args.every <= 0 or args.patience < 0:
        raise UserError(f"--every is {args.every} and --patience {args.patience}: seconds, above 0 and at least 0")
    folder = args.out or args.run / "evaluations"
    end, left_out = last_step(args.run), set()

    def is_done(step: int) -> bool:
        return step in left_out or (folder / f"{step}.json").exists()

    def score(step: int) -> dict[str, Any]:
        given = vars(args) | {"step": step, "out": folder / "scores.json", "cache": args.cache or folder / "features"}
        return {"step": step} | measure(argparse.Namespace(**given), metrics)

    for step in new_checkpoints(args.run, is_done, Pace(args.every, args.patience), end):
        result = score_if_there(args.run, step, score)
        if result is None:
            left_out.add(step)
        else:
            write_result(folder, step, plain(result))
            add_rows(args.run, folder)
    add_rows(args.run, folder)
    return {"out": str(folder), "run": str(args.run), "scored": scored_steps(folder), "left_out": sorted(left_out)}
