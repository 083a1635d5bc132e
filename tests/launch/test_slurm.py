"""Training runs through `launch/slurm.sbatch` on a real Slurm cluster with two node daemons on this machine."""

import json
import sys
import time
from pathlib import Path

import pytest

from sora_jax.training.checkpoint import committed_steps
from tests.launch.slurm_cluster import REPOSITORY, SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TOY = f"{sys.executable} tests/launch/toy_verb.py"
STEPS = 40


def submit(cluster: SlurmCluster, out: Path, *words: object, flags: tuple[str, ...] = ()) -> int:
    """A toy run as a job whose output goes to `out`."""
    environment = {"SORA_PROGRAM": TOY, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    return cluster.sbatch(f"--output={out}", *flags, "launch/slurm.sbatch", "train", *words, **environment)


def results(out: Path) -> list[dict]:
    """What each start of a job printed at its end."""
    return [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]


def wait_for_checkpoint(run: Path, job: int | str, cluster: SlurmCluster, timeout_s: float = 90) -> int:
    """The newest committed step of a run, once it has one. Raises AssertionError when the job ended without."""
    deadline = time.monotonic() + timeout_s
    while not (steps := committed_steps(run / "checkpoints")):
        assert time.monotonic() < deadline, f"no checkpoint after {timeout_s} s: {cluster.job(job)}"
        time.sleep(0.1)
    return steps[-1]


def test_a_preempted_run_saves_and_ends_bitwise_like_one_that_was_not(slurm_cluster, tmp_path, assert_same_runs):
    whole = submit(slurm_cluster, tmp_path / "whole.out", "--workdir", tmp_path / "whole", "--steps", STEPS)
    words = ("--workdir", tmp_path / "run", "--steps", STEPS, "--step_seconds", 0.2)
    job = submit(slurm_cluster, tmp_path / "run.out", *words)
    wait_for_checkpoint(tmp_path / "run", job, slurm_cluster)
    slurm_cluster.requeue(job)
    found = slurm_cluster.wait(job, "COMPLETED", "FAILED")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), (tmp_path / "run.out").read_text()
    first, second = results(tmp_path / "run.out")
    assert (first["status"], first["exit_code"]) == ("preempted", 75)
    assert (second["status"], second["resumed_from"]) == ("finished", first["step"])
    assert slurm_cluster.wait(whole, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert_same_runs(tmp_path / "run", tmp_path / "whole")
