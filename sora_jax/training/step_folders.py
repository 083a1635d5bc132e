"""The folders of a run's checkpoints, `RUN/checkpoints/STEP`, and what their names say.

A save is written into `STEP.saving` and renamed to `STEP` when it is whole and its manifest is in it: a folder whose
name is a plain number is a committed step. What is deleted is renamed first, too. So whatever is killed at whatever
moment, a number means a whole step; everything else is swept away by the next start of the run, except what
`set_aside` kept.
"""

import os
import shutil
import time
from pathlib import Path

from data_pipeline.errors import UserError

CHECKPOINTS = "checkpoints"
SAVING, REMOVING, ASIDE = ".saving", ".removing", ".aside"
UNFINISHED = (f"*{SAVING}*", f"*{REMOVING}*", "*.orbax-checkpoint-tmp*")


def committed_steps(directory: Path) -> list[int]:
    """The steps of `RUN/checkpoints` whose save was committed, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and p.is_dir())


def find_checkpoint(run: str | Path, step: int | None = None) -> Path:
    """The folder of a run's checkpoint: `step`, or the newest. Raises UserError when there is none."""
    directory = Path(run) / CHECKPOINTS
    if not Path(run).is_dir():
        raise UserError(f"there is no run at {run}; name the --workdir of a training run")
    steps = committed_steps(directory)
    if step is not None and step not in steps:
        why = "does not exist"
        if any(directory.glob(f"{step}{SAVING}*")):
            why = "was never committed (its save was interrupted)"
        elif any(directory.glob(f"{step}{ASIDE}.*")):
            why = "was set aside, as the run went on from an earlier one"
        raise UserError(f"checkpoint {step} of {run} {why}; committed are: {', '.join(map(str, steps)) or 'none'}")
    if not steps:
        raise UserError(f"{run} has no committed checkpoint yet; train it first")
    return directory / str(steps[-1] if step is None else step)


def staging(directory: Path, step: int) -> Path:
    """Where `step` is written before it is committed."""
    return directory / f"{step}{SAVING}"


def commit(directory: Path, step: int) -> None:
    """Makes the whole save in `staging` the checkpoint of `step`. Raises OSError if there is one already."""
    staging(directory, step).rename(directory / str(step))
    sync(directory)


def remove(path: Path) -> None:
    """Deletes a checkpoint's folder, or what is left of one; never leaves half a step under a plain number."""
    doomed = path.with_name(f"{path.name}{REMOVING}")
    if path.exists():
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def discard_save(directory: Path, step: int) -> None:
    """Deletes what an interrupted or failed save of `step` left, to the last byte: the disk may be full."""
    for left in directory.glob(f"{step}{SAVING}*"):
        shutil.rmtree(left, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Deletes what saves and deletions that were killed have left. Only whoever holds the run may call it."""
    for pattern in UNFINISHED:
        for left in directory.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def set_aside(directory: Path, after: int) -> list[int]:
    """Renames the steps after `after`, so that a run that goes on from there can save its own. Returns them."""
    steps = [s for s in committed_steps(directory) if s > after]
    for step in steps:
        (directory / str(step)).rename(directory / f"{step}{ASIDE}.{time.time_ns()}")
    return steps


def steps_aside(directory: Path) -> list[Path]:
    """The folders that `set_aside` has renamed."""
    return sorted(directory.glob(f"*{ASIDE}.*"))


def sync(path: Path) -> None:
    """Forces a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
