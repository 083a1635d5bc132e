"""What several verbs share: the number of processes, bars on stderr, and a result as a file."""

import argparse
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from data_pipeline.errors import UserError, from_os_error

OF_DATA = {"path", "mixture"}


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=_workers, default=os.cpu_count() or 1, help="processes; the result is the same"
    )


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields `report(done, total)`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def shown(items: Iterable, total: int | None, description: str) -> Iterable:
    """The items, with a bar on stderr; `total` None: as many as there are, which nobody knows yet."""
    return track(items, description, total=total, console=Console(stderr=True), transient=True)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """A verb's result as JSON. Raises UserError or SystemFailure where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain(result), indent=1) + "\n")
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error


def check_least(args: argparse.Namespace, **least: float) -> None:
    """Raises UserError for an option that is given and below its least value, or no number."""
    for name, value in least.items():
        given = getattr(args, name)
        if given is not None and not value <= given < math.inf:
            raise UserError(f"--{name} is {given}, but must be at least {value}")


def check_task(config: Mapping[str, Any], *tasks: str) -> str:
    """The task of a config. Raises UserError for one that a verb is not for."""
    task = config.get("train", {}).get("task")
    if task not in tasks:
        raise UserError(f"the config trains the task '{task}', but this is for {' and '.join(tasks)} alone")
    return task


def set_data(config: dict[str, Any], path: Path) -> None:
    """`--data` in the place of `config.data.path`. Raises UserError for a run that reads other data sets too."""
    data = config["data"]
    stages = data.get("stages")
    others = ["config.data.mixture"] if data.get("mixture") else []
    for number, stage in enumerate(stages if isinstance(stages, list | tuple) else ()):
        others += [f"config.data.stages[{number}]"] if isinstance(stage, Mapping) and OF_DATA & set(stage) else []
    if others:
        raise UserError(
            f"--data takes the place of config.data.path, but the run reads the data sets of {others[0]}: leave it out"
        )
    data["path"] = str(path)


def joined_hash(hashes: Mapping[str, str]) -> str:
    """One SHA-256 over several, in their order."""
    return hashlib.sha256(" ".join(hashes.values()).encode()).hexdigest()


def plain(value: object) -> object:
    """JSON has no number that is not finite: a loss that is NaN becomes null."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
