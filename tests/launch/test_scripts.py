"""Every shell script is clean, and those that need a cluster say what they would run."""

import os
import shlex
import shutil
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


def test_a_local_verb_is_shown_with_its_memory_settings():
    done = dry_run("local.sh", *VERB, MALLOC_ARENA_MAX="2", SORA_PROGRAM="apptainer exec x.sif sora-jax")
    words = shlex.split(done.stdout)
    assert words[:2] == ["env", "MALLOC_ARENA_MAX=2"] and "MALLOC_MMAP_MAX_=0" in words
    assert words[-len(VERB) - 4 :] == ["apptainer", "exec", "x.sif", "sora-jax", *VERB]


def test_the_whole_path_is_shown_and_nothing_is_touched(tmp_path):
    done = dry_run("quickstart.sh", OUT=str(tmp_path / "run"))
    verbs = [shlex.split(line.partition(" sora-jax ")[2])[0] for line in done.stdout.splitlines()]
    assert verbs == ["data", "data", "train", "encode", "train", "sample", "evaluate", "evaluate", "report"]
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []


def test_an_arrays_task_fills_in_its_number():
    environment = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "2"}
    done = dry_run("slurm.sbatch", "train", "--workdir", "runs/{task}", "--config.train.seed={task}", **environment)
    assert "export SORA_NUM_PROCESSES=2 SORA_COORDINATOR=FIRST_NODE:PORT\n" in done.stdout
    assert done.stdout.endswith("train --workdir runs/3 --config.train.seed=3\n")


@pytest.mark.parametrize("script", ["slurm.sbatch", "restart.sh"])
def test_no_verb_is_a_users_error(script):
    done = dry_run(script)
    assert done.returncode == 2 and "name a verb" in done.stderr


PROGRAM = """#!/usr/bin/env bash
echo "$1 $2" >> verbs.txt
while [ "$#" -gt 0 ]; do
  case "$1" in --out | --workdir) mkdir -p "$2" ;; esac
  shift
done
"""


def test_the_whole_path_takes_up_only_what_is_missing(tmp_path):
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    settings = {"PATH": os.environ["PATH"], "OUT": "run", "SORA_PROGRAM": str(program)}

    def verbs_of_a_run() -> list[str]:
        (tmp_path / "verbs.txt").write_text("")
        command = ["bash", str(REPOSITORY / "launch/quickstart.sh")]
        # The configs are named relative to the repository, the outputs to where the script runs.
        for folder in ("configs", "launch"):
            if not (tmp_path / folder).exists():
                (tmp_path / folder).symlink_to(REPOSITORY / folder)
        subprocess.run(command, cwd=tmp_path, env=settings, timeout=60, check=True, stdout=subprocess.DEVNULL)
        return [line.split()[0] for line in (tmp_path / "verbs.txt").read_text().splitlines()]

    assert verbs_of_a_run() == ["data", "data", "train", "encode", "train", "sample", "evaluate", "evaluate", "report"]
    assert verbs_of_a_run() == []
    shutil.rmtree(tmp_path / "run/latents")
    assert verbs_of_a_run() == ["encode"]
    settings["PROMPTS"] = str(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    assert verbs_of_a_run() == ["sample", "evaluate", "evaluate", "report"]
