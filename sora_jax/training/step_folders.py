"""The folders of a run's checkpoints, `RUN/checkpoints/STEP` and those of its fast tier, and what their names say.

A save is written into `STEP.saving` and renamed to `STEP` when it is whole and its manifest is in it: a folder whose
name is a plain number is a committed step. What is deleted is renamed first, too. So whatever is killed at whatever
moment, a number means a whole step; everything else is swept away by the next start of the run, except what
`set_aside` kept.
"""

import json
import os
import shutil
import time
from pathlib import Path

from data_pipeline.errors import UserError
from sora_jax.training.run_directory import CONFIG, RUN

CHECKPOINTS = "checkpoints"
SAVING, REMOVING, ASIDE = ".saving", ".removing", ".aside"
LOOK_S, QUIET_LOOKS, MAX_LOOKS = 0.1, 10, 100
"""What a failed save left is looked for again until a second has passed without any, or 10 s in all."""
UNFINISHED = (f"*{SAVING}*", f"*{REMOVING}*", "*.orbax-checkpoint-tmp*")


def committed_steps(directory: Path) -> list[int]:
    """The steps of `RUN/checkpoints` whose save was committed, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and p.is_dir())


def fast_tier(fast_dir: str, run_dir: Path) -> Path | None:
    """Where the run keeps its fast checkpoints; None without a fast tier, or for a run that has never started."""
    try:
        identity = json.loads((run_dir / RUN).read_text()).get("id")
    except (OSError, ValueError):
        return None
    return Path(fast_dir) / identity / CHECKPOINTS if fast_dir and identity else None


def tiers_of(run_dir: Path) -> dict[str, Path]:
    """`run` and, where the run's config names one, `fast`: the folders with its checkpoints."""
    try:
        fast_dir = json.loads((run_dir / CONFIG).read_text()).get("train", {}).get("fast_dir", "")
    except (OSError, ValueError):
        fast_dir = ""
    fast = fast_tier(fast_dir, run_dir)
    return {"run": run_dir / CHECKPOINTS, **({} if fast is None else {"fast": fast})}


def find_checkpoint(run: str | Path, step: int | None = None) -> Path:
    """The folder of a run's checkpoint: `step`, or the newest of either tier; a step that both have, in the run
    directory. Raises UserError when there is none."""
    if not Path(run).is_dir():
        raise UserError(f"there is no run at {run}; name the --workdir of a training run")
    tiers = tiers_of(Path(run))
    steps = sorted({step for tier in tiers.values() for step in committed_steps(tier)})
    where = str(run) if "fast" not in tiers else f"{run} and its fast tier {tiers['fast']}"
    if "fast" in tiers and not tiers["fast"].is_dir():
        where += " (which is not there: look on a machine that sees it, or it is lost)"
    if step is not None and step not in steps:
        why, known = _why_missing(list(tiers.values()), step), ", ".join(map(str, steps)) or "none"
        raise UserError(f"checkpoint {step} of {run} {why}; committed in {where} are: {known}")
    if not steps:
        raise UserError(f"there is no committed checkpoint yet in {where}; train it first")
    name = str(steps[-1] if step is None else step)
    return next(tier / name for tier in tiers.values() if (tier / name).is_dir())


def _why_missing(tiers: list[Path], step: int) -> str:
    if any(True for tier in tiers for _ in tier.glob(f"{step}{SAVING}*")):
        return "was never committed (its save was interrupted)"
    if any(True for tier in tiers for _ in tier.glob(f"{step}{ASIDE}.*")):
        return "was set aside, as the run went on from an earlier one"
    return "does not exist"


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
    """Deletes what an interrupted or failed save of `step` left, to the last byte: the disk may be full.

    When one thread of Orbax has failed, others write on for a moment, and make the folder again: it is deleted until
    it stays away.
    """
    quiet = QUIET_LOOKS  # where nothing was left there is nothing to wait for
    for _ in range(MAX_LOOKS):
        left = list(directory.glob(f"{step}{SAVING}*"))
        quiet = 0 if left else quiet + 1
        if quiet > QUIET_LOOKS:
            return
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(LOOK_S)


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
