"""A sweep as a Slurm array: one task a member, each through launch/slurm.sbatch, which requeues what is preempted."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from sora_jax.sweeps.plan import Member

SCRIPT = Path("launch/slurm.sbatch")
MAX_RESTARTS = "1000"
"""A task ends with a code that is worth a restart only when it was preempted, so the script's own bound is lifted."""


def array_command(
    members: Sequence[Member], out: Path, verb: Sequence[str], at_once: int | None, options: str
) -> list[str]:
    """The sbatch command for these members. `verb` is `sweep run …` without an index, `options` sbatch's own flags."""
    array = ",".join(str(m.index) for m in members) + (f"%{at_once}" if at_once else "")
    flags = ["--parsable", f"--array={array}", f"--job-name={out.name}", f"--output={out / 'slurm-%A_%a.log'}"]
    return ["sbatch", *flags, *shlex.split(options), str(SCRIPT), *verb, "--index", "{task}"]


def submit(command: Sequence[str], out: Path) -> str:
    """Submits an array and returns its job id. Raises UserError with what sbatch says when it refuses."""
    if not SCRIPT.is_file():
        raise UserError(f"there is no {SCRIPT} here; run this in the repository's root, as the job does")
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch here: this is no machine of a Slurm cluster; use --engine local")
    out.mkdir(parents=True, exist_ok=True)  # Slurm makes no folder for its logs
    environment = {"MAX_RESTARTS": MAX_RESTARTS, **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sbatch refused the array: {' '.join(done.stderr.split())}")
    return done.stdout.strip().split(";")[0]
