"""Every shell script is clean, and those that need a cluster say what they would run."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*REPOSITORY.glob("launch/*.sh"), REPOSITORY / "launch/slurm.sbatch", REPOSITORY / ".ci/run"])
VERB = ("train", "--config", "configs/x.py", "--workdir", "runs/a b", "--config.train.mesh={'data': 8}")


def dry_run(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **environment}
    command = ["bash", str(REPOSITORY / "launch" / script), *words]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=20, check=False)


def test_shellcheck_finds_nothing():
    program = Path(sys.executable).with_name("shellcheck")
    command = [str(program), "--external-sources", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_a_slurm_job_shows_its_flags_and_its_step():
    done = dry_run("slurm.sbatch", *VERB)
    lines = done.stdout.splitlines()
    assert "#SBATCH --requeue" in lines and "#SBATCH --signal=B:TERM@120" in lines
    words = shlex.split(lines[-1])
    assert words[0] == "srun" and tuple(words[-len(VERB) :]) == VERB


def test_an_arrays_task_fills_in_its_number():
    environment = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "2"}
    done = dry_run("slurm.sbatch", "train", "--workdir", "runs/{task}", "--config.train.seed={task}", **environment)
    assert "export SORA_NUM_PROCESSES=2 SORA_COORDINATOR=FIRST_NODE:PORT\n" in done.stdout
    assert done.stdout.endswith("train --workdir runs/3 --config.train.seed=3\n")


@pytest.mark.parametrize("script", ["slurm.sbatch", "restart.sh"])
def test_no_verb_is_a_users_error(script):
    done = dry_run(script)
    assert done.returncode == 2 and "name a verb" in done.stderr
