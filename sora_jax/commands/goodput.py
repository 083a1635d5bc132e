"""`sora-jax goodput`: where the wall time of a run went, over all its starts.

    sora-jax goodput --run runs/dit

Reads `ledger.jsonl` of the run directory, of a run that is under way too.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sora_jax.training.ledger import KINDS, Account, add_up, read_ledger
from sora_jax.training.progress import duration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax goodput`."""
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the --workdir of a training run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prints a table to stderr, and returns the same as numbers."""
    account = add_up(read_ledger(args.run))
    Console(stderr=True).print(table(account, str(args.run)))
    return summarise(account)


def table(account: Account, title: str) -> Table:
    """Seconds and share of every kind that took any."""
    shown = Table("kind", "seconds", "share", "what it is", title=title, title_justify="left")
    for name, meaning in KINDS.items():
        seconds = account.seconds[name]
        if seconds:
            shown.add_row(name, f"{seconds:.2f}", f"{seconds / account.wall_s:.1%}", meaning)
    shown.add_section()
    times = "once" if account.num_starts == 1 else f"{account.num_starts} times"
    total = f"{duration(account.wall_s)}: started {times}, at step {account.steps}"
    shown.add_row("wall time", f"{account.wall_s:.2f}", "", total)
    return shown


def summarise(account: Account) -> dict[str, Any]:
    """The account as what the last line of stdout says."""
    return {
        "goodput": round(account.goodput, 4),
        "wall_seconds": round(account.wall_s, 3),
        "seconds": {name: round(seconds, 3) for name, seconds in account.seconds.items()},
        "shares": {name: round(seconds / max(account.wall_s, 1e-9), 4) for name, seconds in account.seconds.items()},
        "num_starts": account.num_starts,
        "num_rollbacks": account.num_rollbacks,
        "step": account.steps,
        "steps_repeated": account.steps_repeated,
    }
