"""Training runs through `launch/slurm.sbatch` on a real Slurm cluster with two node daemons on this machine."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sora_jax.training.checkpoint import committed_steps
from sora_jax.training.metrics import read_metrics
from tests.launch.slurm_cluster import REPOSITORY, SlurmCluster

pytestmark = pytest.mark.slurm

TOY = f"{sys.executable} tests/launch/toy_verb.py"
STEPS = 40


def submit(cluster: SlurmCluster, out: Path, *words: object, flags: tuple[str, ...] = (), **environment: str) -> int:
    """A toy run as a job whose output goes to `out`."""
    settings = {"SORA_PROGRAM": TOY, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": "", **environment}
    return cluster.sbatch(f"--output={out}", *flags, "launch/slurm.sbatch", "train", *words, **settings)


def results(out: Path) -> list[dict]:
    """What each start of a job printed at its end."""
    return [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]


def finish(cluster: SlurmCluster, job: int, out: Path, restarts: int) -> list[dict]:
    """Waits for a job to complete after so many restarts, and returns what each start printed."""
    found = cluster.wait(job, "COMPLETED", "FAILED")
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", str(restarts)), (found, out.read_text())
    return results(out)


def wait_for_checkpoint(run: Path, job: int, cluster: SlurmCluster, timeout_s: float = 90) -> None:
    """Waits until a run has a committed step. Raises AssertionError when it has none in time."""
    deadline = time.monotonic() + timeout_s
    while not committed_steps(run / "checkpoints"):
        assert time.monotonic() < deadline, f"no checkpoint after {timeout_s} s: {cluster.job(job)}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def whole(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of STEPS steps that was never interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    job = submit(slurm_cluster, run.with_suffix(".out"), "--workdir", run, "--steps", STEPS)
    (result,) = finish(slurm_cluster, job, run.with_suffix(".out"), 0)
    assert (result["status"], result["step"]) == ("finished", STEPS)
    return run


SLOW = ("--steps", STEPS, "--step_seconds", 0.2)


def test_a_preempted_run_resumes_under_its_id_and_ends_bitwise_the_same(
    slurm_cluster, tmp_path, whole, assert_same_runs
):
    """`scontrol requeue` gives SIGTERM to every process of the job, the batch script and its tasks among them."""
    run, out = tmp_path / "run", tmp_path / "run.out"
    job = submit(slurm_cluster, out, "--workdir", run, *SLOW)
    wait_for_checkpoint(run, job, slurm_cluster)
    slurm_cluster.requeue(job)
    first, second = finish(slurm_cluster, job, out, 1)
    assert (first["status"], first["exit_code"]) == ("preempted", 75)
    assert (second["status"], second["resumed_from"]) == ("finished", first["step"])
    assert_same_runs(run, whole)


def test_a_job_of_a_higher_partition_preempts_a_run_which_goes_on_when_it_has_ended(
    slurm_cluster, tmp_path, whole, assert_same_runs
):
    """Slurm's own preemption: SIGCONT and SIGTERM to the tasks alone, SIGKILL after the partition's GraceTime."""
    run, out = tmp_path / "run", tmp_path / "run.out"
    job = submit(slurm_cluster, out, "--workdir", run, *SLOW, flags=("--nodelist=n1",))
    wait_for_checkpoint(run, job, slurm_cluster)
    flags = ("--partition=urgent", "--nodelist=n1", "--output=/dev/null")
    urgent = slurm_cluster.sbatch(*flags, "--wrap", "sleep 3")
    slurm_cluster.wait(urgent, "RUNNING")
    assert slurm_cluster.job(job)["JobState"] == "PENDING" and len(results(out)) == 1
    slurm_cluster.start_now(job)
    slurm_cluster.wait(urgent, "COMPLETED")
    first, second = finish(slurm_cluster, job, out, 1)
    assert (first["status"], first["exit_code"]) == ("preempted", 75)
    assert (second["status"], second["resumed_from"]) == ("finished", first["step"])
    assert_same_runs(run, whole)


def test_a_run_whose_node_is_lost_goes_on_on_another(slurm_cluster, tmp_path, whole, assert_same_runs):
    run, out = tmp_path / "run", tmp_path / "run.out"
    job = submit(slurm_cluster, out, "--workdir", run, *SLOW)
    wait_for_checkpoint(run, job, slurm_cluster)
    node = slurm_cluster.job(job)["NodeList"]
    slurm_cluster.lose(node)
    try:
        slurm_cluster.start_now(job)
        (only,) = finish(slurm_cluster, job, out, 1)
        assert slurm_cluster.job(job)["NodeList"] != node
    finally:
        slurm_cluster.restore(node)
    assert only["status"] == "finished" and only["resumed_from"] >= 5
    assert_same_runs(run, whole)


def test_before_its_time_limit_a_job_saves_and_goes_back_to_the_queue(slurm_cluster, tmp_path, whole, assert_same_runs):
    """`--signal=B:TERM@120` gives SIGTERM to the batch script alone, as this does."""
    run, out = tmp_path / "run", tmp_path / "run.out"
    job = submit(slurm_cluster, out, "--workdir", run, *SLOW)
    wait_for_checkpoint(run, job, slurm_cluster)
    slurm_cluster.run("scancel", "--batch", "--signal=TERM", job)
    slurm_cluster.start_now(job)
    first, second = finish(slurm_cluster, job, out, 1)
    assert (first["exit_code"], second["resumed_from"]) == (75, first["step"])
    assert_same_runs(run, whole)


def test_a_crash_is_restarted_and_a_users_error_is_not(slurm_cluster, tmp_path, whole, assert_same_runs):
    crash, error, last = tmp_path / "crash.out", tmp_path / "error.out", tmp_path / "last.out"
    words = ("--workdir", tmp_path / "crash", "--steps", STEPS, "--fail", 134, "--at", 14)
    crashing = submit(slurm_cluster, crash, *words)
    failing = submit(slurm_cluster, error, "--workdir", tmp_path / "error", "--steps", 1, "--fail", 2)
    assert slurm_cluster.wait(failing, "FAILED", "COMPLETED")["ExitCode"] == "2:0"
    slurm_cluster.start_now(crashing)
    # No checkpoint and no restart left: it ends, with the code of the crash.
    words = ("--workdir", tmp_path / "last", "--steps", 1, "--fail", 134)
    hopeless = submit(slurm_cluster, last, *words, MAX_RESTARTS="0")
    found = slurm_cluster.wait(hopeless, "FAILED", "COMPLETED")
    assert (found["ExitCode"], found["Restarts"]) == ("134:0", "0") and "giving up" in last.read_text()
    finish(slurm_cluster, crashing, crash, 1)
    assert_same_runs(tmp_path / "crash", whole)


def test_a_cancelled_run_stays_cancelled_and_can_be_taken_up(slurm_cluster, tmp_path, whole, assert_same_runs):
    run, out = tmp_path / "run", tmp_path / "run.out"
    job = submit(slurm_cluster, out, "--workdir", run, *SLOW)
    wait_for_checkpoint(run, job, slurm_cluster)
    slurm_cluster.run("scancel", job)
    found = slurm_cluster.wait(job, "CANCELLED")
    assert found["Restarts"] == "0" and "back to the queue" not in out.read_text()
    again = submit(slurm_cluster, out, "--workdir", run, "--steps", STEPS)
    *_, last = finish(slurm_cluster, again, out, 0)
    assert last["resumed_from"] >= 5
    assert_same_runs(run, whole)


def test_an_array_of_four_runs_each_in_its_own_folder(slurm_cluster, tmp_path):
    words = ("--workdir", f"{tmp_path}/run_{{task}}", "--steps", 5)
    job = submit(slurm_cluster, tmp_path / "%a.out", *words, flags=("--array=0-3",))
    for task in range(4):
        slurm_cluster.wait(f"{job}_{task}", "COMPLETED")
        (result,) = results(tmp_path / f"{task}.out")
        assert result["checkpoint"] == f"{tmp_path}/run_{task}/checkpoints/5"


def test_the_program_itself_runs_as_a_job(slurm_cluster, tmp_path):
    """`sora-jax` is found on the PATH of whoever submits, and the arguments arrive as they were."""
    words = ("data", "synth", "--world", "quickstart", "--clips", 2, "--seed", 0, "--out", tmp_path / "a world")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    flags = (f"--output={tmp_path / 'out'}", "launch/slurm.sbatch")
    job = slurm_cluster.sbatch(*flags, *words, PATH=path, PYTHONPATH=str(REPOSITORY))
    slurm_cluster.wait(job, "COMPLETED")
    assert len(list((tmp_path / "a world/clips").glob("*.mp4"))) == 2


def test_two_nodes_train_one_run_and_resume_it_after_preemption(slurm_cluster, tmp_path, whole):
    """Two tasks on two nodes meet at the first node's address, stop at the same step, and go on together."""
    run, out = tmp_path / "run", tmp_path / "run.out"
    job = submit(slurm_cluster, out, "--workdir", run, *SLOW, flags=("--nodes=2",))
    wait_for_checkpoint(run, job, slurm_cluster)
    slurm_cluster.requeue(job)
    starts = finish(slurm_cluster, job, out, 1)
    assert "on n[1-2]: 2 process(es), coordinator 127.0.0.1:" in out.read_text()
    (stopped,) = {result["step"] for result in starts if result["status"] == "preempted"}
    assert {r["resumed_from"] for r in starts if r["status"] == "finished"} == {stopped}
    ours, reference = ({r["step"]: r["loss"] for r in read_metrics(d) if r["kind"] == "train"} for d in (run, whole))
    assert ours.keys() == reference.keys()
    np.testing.assert_allclose(list(ours.values()), list(reference.values()), rtol=1e-4)
