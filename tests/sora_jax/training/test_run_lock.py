"""Two runs in one directory: who goes on, who stops, and how long that takes, with real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.errors import SystemFailure, UserError
from sora_jax.training.run_lock import LOCK, RunLock

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from pathlib import Path
from sora_jax.training.run_lock import RunLock
with RunLock(Path(sys.argv[1]), heartbeat_s=0.1, stale_s=0.5):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process of Slurm's job 17 that owns the run in `tmp_path`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "17"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "mine\n", process.stderr.read()
    yield process
    process.kill()
    process.communicate()


def pretend_to_be_elsewhere(run: Path) -> dict:
    """The lock as its owner would have written it on another machine."""
    owner = {**json.loads((run / LOCK).read_text()), "host": "elsewhere", "boot": "another"}
    (run / LOCK).write_text(json.dumps(owner))
    return owner


def test_a_second_run_fails_at_once_and_a_dead_ones_lock_is_taken_over(holder, tmp_path):
    with pytest.raises(UserError, match=rf"trained by process {holder.pid} on .*, which runs; stop it first"):
        RunLock(tmp_path).__enter__()
    holder.send_signal(signal.SIGSTOP)  # frozen is not gone
    with pytest.raises(UserError, match="which runs"):
        RunLock(tmp_path).__enter__()
    holder.send_signal(signal.SIGCONT)
    holder.kill()
    holder.wait()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            RunLock(tmp_path).__enter__()
    assert not (tmp_path / LOCK).exists()


def test_from_another_host_its_heartbeat_decides(holder, tmp_path):
    pretend_to_be_elsewhere(tmp_path)
    with pytest.raises(UserError, match=rf"process {holder.pid} on elsewhere, which touched its lock"):
        RunLock(tmp_path, heartbeat_s=0.1, stale_s=30).__enter__()
    holder.kill()
    holder.wait()
    begun = time.monotonic()
    with RunLock(tmp_path, heartbeat_s=0.1, stale_s=0.3):
        assert time.monotonic() - begun >= 0.3
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_frozen_run_whose_lock_was_taken_ends_when_it_wakes(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    pretend_to_be_elsewhere(tmp_path)
    with RunLock(tmp_path, heartbeat_s=0.1, stale_s=0.3):
        holder.send_signal(signal.SIGCONT)
        _, words = holder.communicate(timeout=30)
        assert holder.returncode == 2
        assert f"was taken over by process {os.getpid()}" in words


def test_a_lock_that_says_nothing_is_taken_over(tmp_path):
    (tmp_path / LOCK).write_text("")
    with RunLock(tmp_path, heartbeat_s=0.1, stale_s=0.2):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_requeued_job_whose_last_start_still_lives_is_worth_another_start(holder, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(SystemFailure, match=f"process {holder.pid} on .*, an earlier start of this job 17"):
        RunLock(tmp_path).__enter__()
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    with pytest.raises(UserError, match="stop it first") as caught:
        RunLock(tmp_path).__enter__()
    assert not isinstance(caught.value, SystemFailure)
