"""`sora-jax sweep`: one config with a few fields changed, many times over.

    sora-jax sweep run --sweep configs/sweeps/quickstart_learning_rate.py --out runs/learning_rate
    sora-jax sweep status|table|plot --out runs/learning_rate

`run` again goes on. Its exit codes are those of `train`: 0 all is finished, 2 a member was given up (the others are
done), 75 stopped, or left to another process: run it again.
"""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline.errors import UserError
from sora_jax.commands.train import load_config
from sora_jax.sweeps.directory import adopt, read_members
from sora_jax.sweeps.driver import EXIT_USER_ERROR, Settings, run_members, train_command
from sora_jax.sweeps.plan import Member, read_sweep
from sora_jax.sweeps.slurm import array_command, submit
from sora_jax.sweeps.status import FAILED, FINISHED, Standing, count_states, read_standing
from sora_jax.sweeps.tables import columns, results, rich_table, sort_standings, write_table
from sora_jax.training.stop import EXIT_PREEMPTED

ENGINES = ("local", "slurm")
INDEX_VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax sweep`."""
    verbs = parser.add_subparsers(dest="sweep_verb", required=True, metavar="run|status|table|plot")
    run = verbs.add_parser("run", help="train every member that is not finished, here or as a Slurm array")
    run.add_argument("--sweep", required=True, metavar="FILE.py", help="get_sweep() yields dicts of overrides")
    run.add_argument("--config", default="", metavar="FILE.py", help="the base config, in place of the sweep file's")
    run.add_argument("--workers", type=int, help="members at a time (local: 1; slurm: as many as start)")
    run.add_argument("--index", type=int, help="this member only (in an array or an indexed job: the task's number)")
    run.add_argument("--engine", choices=ENGINES, default="local")
    run.add_argument(
        "--sbatch", default="", metavar="FLAGS", help='slurm: flags such as "--gpus-per-node=8 --time=4:00"'
    )
    run.add_argument("--retries", type=int, default=2, help="of a member that crashes without a newer checkpoint")
    run.add_argument("--retry_failed", action="store_true", help="try members again that were given up")
    run.add_argument("--dry_run", action="store_true", help="check everything, and print the commands instead")
    run.set_defaults(sweep_run=_run)
    verbs.add_parser("status", help="where each member stands").set_defaults(sweep_run=_status)
    table = verbs.add_parser("table", help="what each member measured, the best first")
    table.add_argument("--file", type=Path, metavar="FILE", help="written too: .md or .csv")
    table.set_defaults(sweep_run=_table)
    plot = verbs.add_parser("plot", help="loss curves, and the final loss against a swept number")
    plot.add_argument("--file", type=Path, required=True, metavar="FILE", help=".png or .svg")
    plot.add_argument("--x", default="", metavar="NAME", help="the swept number (default: the one with most values)")
    plot.set_defaults(sweep_run=_plot)
    for child in verbs.choices.values():
        child.add_argument("--out", type=Path, required=True, metavar="DIR", help="the sweep's folder")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does what one of the four verbs says."""
    return args.sweep_run(args)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    for name, least in (("workers", 1), ("retries", 0), ("index", 0)):
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f"--{name} is {value}, but must be at least {least}")
    if (num_processes := int(os.environ.get("SORA_NUM_PROCESSES", "1"))) > 1:
        raise UserError(
            f"a sweep trains each member in one process, on all devices of one machine, and this job has "
            f"{num_processes} processes; give it one node and one task"
        )
    sweep = read_sweep(args.sweep, args.overrides, load_config, args.config)
    index = _own_index() if args.index is None and args.engine == "local" else args.index
    members = _choose(adopt(sweep, args.out, write=not args.dry_run), index, args)
    left = [s.member for s in _standings(members, args.out) if not _is_done(s, args.retry_failed)]
    if args.engine == "slurm":
        return _submit(left, args)
    if args.dry_run:
        commands = [shlex.join(train_command(m, sweep.base, args.out)) for m in left]
        return {"members": len(members), "would_train": len(left), "commands": commands}
    run_members(left, args.out, Settings(sweep.base, args.workers or 1, args.retries, args.retry_failed))
    standings = _standings(members, args.out)
    failed = {s.member.name: s.error for s in standings if s.state == FAILED}
    counts = count_states(standings)
    open_ones = len(standings) - counts[FINISHED] - counts[FAILED]
    code = EXIT_PREEMPTED if open_ones else EXIT_USER_ERROR if failed else 0
    return {"out": str(args.out), "members": len(members), **counts, "errors": failed, "exit_code": code}


def _submit(left: list[Member], args: argparse.Namespace) -> dict[str, Any]:
    verb = ["sweep", "run", "--sweep", args.sweep, "--out", str(args.out), "--retries", str(args.retries)]
    verb += ["--config", args.config] if args.config else []
    verb += [*(["--retry_failed"] if args.retry_failed else []), *args.overrides]
    command = array_command(left, args.out, verb, args.workers, args.sbatch)
    if args.dry_run or not left:
        return {"would_submit": len(left), "command": shlex.join(command) if left else None}
    return {"job": submit(command, args.out), "submitted": len(left), "out": str(args.out)}


def _status(args: argparse.Namespace) -> dict[str, Any]:
    standings = _standings(read_members(args.out), args.out)
    Console(stderr=True).print(rich_table(columns(standings, progress=True)))
    return {"out": str(args.out), **count_states(standings), "members": results(standings)}


def _table(args: argparse.Namespace) -> dict[str, Any]:
    standings = sort_standings(_standings(read_members(args.out), args.out))
    Console(stderr=True).print(rich_table(columns(standings, progress=False)))
    if args.file:
        write_table(args.file, standings)
    return {"out": str(args.out), "file": args.file, "members": results(standings)}


def _plot(args: argparse.Namespace) -> dict[str, Any]:
    from sora_jax.sweeps.figure import draw_sweep  # importing matplotlib takes a second, and only this verb needs it

    standings = _standings(read_members(args.out), args.out)
    x = draw_sweep(standings, args.out, args.file, args.x)
    return {"out": str(args.out), "file": str(args.file), "x": x, "members": len(standings)}


def _standings(members: list[Member], out: Path) -> list[Standing]:
    return [read_standing(member, out) for member in members]


def _is_done(standing: Standing, retry_failed: bool) -> bool:
    return standing.state == FINISHED or (standing.state == FAILED and not retry_failed)


def _own_index() -> int | None:
    """The number that an array or an indexed job gave to this task, None outside of one."""
    found = next((os.environ[name] for name in INDEX_VARIABLES if name in os.environ), None)
    return None if found is None else int(found)


def _choose(members: list[Member], index: int | None, args: argparse.Namespace) -> list[Member]:
    chosen = [m for m in members if index is None or m.index == index]
    if not chosen:
        known = ", ".join(str(m.index) for m in members)
        raise UserError(f"there is no member {index} in {args.sweep}; their indices are {known}")
    return chosen
