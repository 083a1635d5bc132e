"""Where a run starts: at its newest committed step, or at an earlier one that was asked for.

Nothing is chosen silently: a newest step that is damaged is an error that names the newest good one, and
`--from_step` goes on from there. The steps after it are renamed (`STEP.aside…`), not deleted; the run makes them anew.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from data_pipeline.errors import UserError, from_os_error
from sora_jax.training.distributed import agreed, is_leader
from sora_jax.training.manifest import damage, find_flaws, is_good
from sora_jax.training.run_directory import RUN, open_run
from sora_jax.training.step_folders import CHECKPOINTS, committed_steps, set_aside
from sora_jax.training.tiers import fast_tier, known_steps, tiers_of

STARTS = "starts.jsonl"

logger = logging.getLogger(__name__)


def open_together(run_dir: Path, description: dict[str, Any], fast_dir: str, from_step: int | None) -> int:
    """Process 0, which holds the run, opens its directory for all. Returns the step to start from, 0 for a new run.

    Raises UserError for another run's directory, and where another process does not see what process 0 has written.
    """
    start = 0
    if is_leader():
        _check_left_tier(run_dir, fast_dir, from_step)
        open_run(run_dir, description, bool(known_steps(run_dir, fast_dir)))
        start = choose_start(run_dir, fast_dir, from_step)
        record_start(run_dir, start, from_step, description)
    start = agreed("start", start)
    if not (run_dir / RUN).exists():
        raise UserError(
            f"process {jax.process_index()} does not see {run_dir / RUN}, which process 0 has written: --workdir must "
            "be on a file system that all hosts share"
        )
    return start


def _check_left_tier(run_dir: Path, fast_dir: str, from_step: int | None) -> None:
    """Raises UserError if the newest step is in a fast tier that the config named before and names no more."""
    left = tiers_of(run_dir).get("fast")
    known, elsewhere = known_steps(run_dir, fast_dir), committed_steps(left) if left else []
    if from_step is None and max(elsewhere, default=0) > max(known, default=0):
        raise UserError(
            f"the newest step of {run_dir}, {elsewhere[-1]}, is in its fast tier {left}, but config.train.fast_dir is "
            f"'{fast_dir}' now; leave it as it was for this start, or go on from an older one with --from_step "
            f"{max(known, default=0)}"
        )


def choose_start(run_dir: Path, fast_dir: str = "", from_step: int | None = None) -> int:
    """The committed step to start from, 0 for a new run; with `from_step`, newer ones are set aside first.

    Only the process that holds the run calls it. A launcher repeats its command after every preemption: once the run
    has gone on from `from_step`, asking for it again means the newest step, unless that one is damaged. Raises
    UserError for a `from_step` that was not committed or is damaged; nothing is set aside then.
    """
    steps = known_steps(run_dir, fast_dir)
    newest = steps[-1] if steps else 0
    if from_step is None or from_step == newest:
        return newest
    tiers = [tier for tier in (run_dir / CHECKPOINTS, fast_tier(fast_dir, run_dir)) if tier is not None]
    asked = next((row for row in read_starts(run_dir) if row.get("from_step") == from_step), None)
    if asked is not None and any(is_good(t / str(newest)) for t in tiers if (t / str(newest)).is_dir()):
        logger.warning(
            "the run went on from step %d before, on %s: it continues at step %d; to go back once more, move the newer "
            "folders in %s away",
            from_step,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(asked["time"])),
            newest,
            tiers[0],
        )
        return newest
    if from_step not in steps:
        committed = ", ".join(map(str, steps)) or "none"
        raise UserError(f"--from_step {from_step} of {run_dir} was never committed; committed are: {committed}")
    copies = [tier / str(from_step) for tier in tiers if (tier / str(from_step)).is_dir()]
    flaws = [next(find_flaws(copy), None) for copy in copies]
    if flaws[-1] is not None and all(flaws):  # before a newer one is touched
        raise damage(copies[-1], flaws[-1], tiers, run_dir)
    moved = sorted({step for tier in tiers for step in set_aside(tier, from_step)})
    logger.warning("going on from step %d; set aside: %s", from_step, ", ".join(map(str, moved)))
    return from_step


def record_start(run_dir: Path, step: int, from_step: int | None, description: Mapping[str, Any]) -> None:
    """Adds a line to `starts.jsonl`: when, from which step, on which hosts, by which code and command."""
    row = {
        "time": time.time(),
        "step": step,
        **({} if from_step is None else {"from_step": from_step}),
        "code": description["code"],
        **description["environment"],
    }
    try:
        with (run_dir / STARTS).open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise from_os_error(error, f"writing {run_dir / STARTS}") from error


def read_starts(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Every start of the run, the first one first; a line torn by a kill is left out."""
    path = run_dir / STARTS
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            logger.warning("%s has a torn line, left out: %.40s", path, line)
