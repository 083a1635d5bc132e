"""Sweeps run on this machine, by real processes: stopped, killed, failing, crashing, and two at once."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sora_jax.commands.train import load_config
from sora_jax.sweeps.directory import read_members, read_record
from sora_jax.sweeps.plan import read_sweep
from sora_jax.training.checkpoint import committed_steps, find_checkpoint, load_parts, saved_shapes
from sora_jax.training.metrics import read_metrics


def wait_until(condition, what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def holder(folder: Path) -> int:
    """The process that trains a member."""
    return int((folder / "sweep.lock").read_text().split()[1])


def exit_codes(folder: Path) -> list[int | None]:
    return [attempt.exit_code for attempt in read_record(folder).attempts]


def final_arrays(run_dir: Path) -> list[np.ndarray]:
    path, sharding = find_checkpoint(run_dir), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arrays = []
    for part in ("params", "ema", "state"):
        shapes = jax.tree.map(lambda x: x.update(sharding=sharding), saved_shapes(path, part))
        arrays += [np.asarray(x) for x in jax.tree.leaves(load_parts(path, {part: shapes}))]
    return arrays


@pytest.mark.long
def test_stopped_and_killed_a_sweep_goes_on_where_it_was(tiny_sweep, start, sweep, tmp_path):
    """SIGTERM, then SIGKILL of driver and process: nothing is trained twice, and a killed run ends bitwise the same."""
    members = [{"train.seed": 0}, {"optim.optimizer": "adamm"}, {"train.seed": 1}]
    file, out = tiny_sweep(members, num_steps=200), tmp_path / "out"
    planned = read_sweep(str(file), (), load_config)
    overrides = planned.members[-1].overrides
    reference = start("train", "--config", planned.base, "--workdir", tmp_path / "reference", *overrides)
    driver = start("sweep", "run", "--sweep", file, "--out", out)
    wait_until(lambda: (out / "sweep.json").exists(), "the sweep began")
    first, failing, last = (out / m.name for m in read_members(out))

    wait_until(lambda: committed_steps(first / "checkpoints"), "the first member saved")
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate()
    assert driver.returncode == 75 and json.loads(said.splitlines()[-1])["preempted"] == 1
    assert exit_codes(first) == [75] and not failing.exists()

    driver = start("sweep", "run", "--sweep", file, "--out", out)
    wait_until(lambda: committed_steps(last / "checkpoints"), "the last member saved")
    driver.kill()
    driver.communicate()
    os.kill(holder(last), signal.SIGKILL)
    wait_until(lambda: sweep("status", "--out", out)[1]["running"] == 0, "the lock is free again")
    _, status, _ = sweep("status", "--out", out)
    assert (status["finished"], status["failed"], status["preempted"]) == (1, 1, 1)
    reached = committed_steps(last / "checkpoints")[-1]

    code, result, _ = sweep("run", "--sweep", file, "--out", out)
    assert code == 2 and (result["finished"], result["failed"]) == (2, 1)
    assert "adamw" in result["errors"][failing.name]
    assert exit_codes(first) == [75, 0] and exit_codes(failing) == [2] and exit_codes(last) == [None, 0]
    assert f"from step {reached}" in (last / "train.log").read_text()

    assert reference.wait() == 0, reference.communicate()
    reference.communicate()
    ours, uninterrupted = final_arrays(last), final_arrays(tmp_path / "reference")
    assert len(ours) == len(uninterrupted) > 0 and all(map(np.array_equal, ours, uninterrupted))
    check_table_and_plot(sweep, out, tmp_path)


def check_table_and_plot(sweep, out: Path, folder: Path) -> None:
    """Both finished members with all their numbers, the failed one last."""
    code, result, _ = sweep("table", "--out", out, "--file", folder / "table.md")
    rows = result["members"]
    assert code == 0 and [r["state"] for r in rows] == ["finished", "finished", "failed"]
    assert rows[0]["held_out_loss"] <= rows[1]["held_out_loss"] and rows[2]["held_out_loss"] is None
    assert all(r["step"] == 200 and r["frames_per_second"] > 0 and r["seconds"] > 0 for r in rows[:2])
    by_name = {r["name"]: r for r in rows}
    for member in read_members(out)[::2]:
        trained = [r for r in read_metrics(out / member.name) if r["kind"] == "train"]
        assert by_name[member.name]["loss"] == trained[-1]["loss"]
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) == 5 and "held-out loss" in lines[0] and len({line.count("|") for line in lines}) == 1
    assert sweep("plot", "--out", out, "--file", folder / "sweep.svg")[1]["x"] == "train.seed"


SCRIPTED = """
import os, sys, time
from pathlib import Path
from ml_collections import ConfigDict

def get_config():
    if "train" in sys.argv:  # only in a member's own process
        starts = Path({starts!r})
        starts.write_text(starts.read_text() + "x")
        {what}
    return ConfigDict({{"train": {{"task": "autoencoder"}}}})

def get_sweep():
    yield {{"train.seed": 1}}
    yield {{"train.seed": 2}}
"""


@pytest.fixture
def scripted(tmp_path):
    """A sweep file whose members' processes do `what` instead of training, and the file that counts their starts."""
    starts = tmp_path / "starts"

    def write(what: str) -> Path:
        starts.write_text("")
        (tmp_path / "sweep.py").write_text(SCRIPTED.format(starts=str(starts), what=what))
        return tmp_path / "sweep.py"

    return write, starts


def test_a_crash_is_tried_again_a_bounded_number_of_times(scripted, sweep, tmp_path):
    write, starts = scripted
    file, out = write("os.kill(os.getpid(), 9)"), tmp_path / "out"
    code, result, _ = sweep("run", "--sweep", file, "--out", out, "--retries", 1)
    assert code == 2 and result["failed"] == 2 and starts.read_text() == "xxxx"
    assert all("2 crashes in a row, the last with SIGKILL" in error for error in result["errors"].values())
    again = sweep("run", "--sweep", file, "--out", out)
    assert again[0] == 2 and again[1]["errors"] == result["errors"] and starts.read_text() == "xxxx"
    assert sweep("run", "--sweep", file, "--out", out, "--index", 1, "--retries", 0, "--retry_failed")[0] == 2
    assert starts.read_text() == "xxxxx"


FAST_TIER = """from sora_jax.training.resume import record_start
        run = Path(sys.argv[sys.argv.index("--workdir") + 1])
        record_start(run, 5 if (run / "starts.jsonl").exists() else 0, None, {"code": {}, "environment": {}})
        os.kill(os.getpid(), 9)"""


def test_a_start_that_goes_on_from_a_step_of_the_fast_tier_is_progress(scripted, sweep, tmp_path):
    """The run directory never holds a checkpoint: what shows there is the step of each start, 0, 5 and 5."""
    write, starts = scripted
    file, out = write(FAST_TIER), tmp_path / "out"
    code, _, _ = sweep("run", "--sweep", file, "--out", out, "--retries", 1, "--index", 0)
    assert code == 2 and starts.read_text() == "xxx"
    (member, *_) = sweep("status", "--out", out)[1]["members"]
    assert (member["state"], member["step"]) == ("failed", 5)


def test_a_users_error_is_recorded_and_the_rest_go_on(scripted, sweep, tmp_path):
    write, starts = scripted
    file, out = write("raise ValueError('no such data')"), tmp_path / "out"
    code, result, _ = sweep("run", "--sweep", file, "--out", out, "--workers", 2)
    assert code == 2 and starts.read_text() == "xx"
    assert all("ValueError: no such data" in error for error in result["errors"].values())
    _, status, said = sweep("status", "--out", out)
    assert [row["state"] for row in status["members"]] == ["failed", "failed"] and "no such data" in said
    # Another override for all is another try: what was wrong may be right now.
    sweep("run", "--sweep", file, "--out", out, "--config.train.num_steps=5")
    assert starts.read_text() == "xxxx"


def test_two_drivers_never_train_one_member(scripted, start, sweep, tmp_path):
    write, starts = scripted
    file, out = write("time.sleep(60)"), tmp_path / "out"
    driver = start("sweep", "run", "--sweep", file, "--out", out)
    wait_until(lambda: starts.read_text() == "x", "the first member started")
    one = read_members(out)[0]
    assert sweep("status", "--out", out)[1]["running"] == 1
    code, result, _ = sweep("run", "--sweep", file, "--out", out, "--index", one.index)
    assert code == 75 and result["running"] == 1 and starts.read_text() == "x"

    process = holder(out / one.name)
    driver.kill()  # the process lives on, and keeps its member
    driver.communicate()
    assert sweep("run", "--sweep", file, "--out", out, "--index", one.index)[0] == 75 and starts.read_text() == "x"
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: sweep("status", "--out", out)[1]["preempted"] == 1, "the member is free")


def test_a_signal_before_a_process_can_catch_it_is_a_preemption(scripted, start, tmp_path):
    write, starts = scripted
    file, out = write("time.sleep(60)"), tmp_path / "out"
    driver = start("sweep", "run", "--sweep", file, "--out", out, "--workers", 2)
    wait_until(lambda: starts.read_text() == "xx", "both started")
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate()
    assert driver.returncode == 75 and json.loads(said)["preempted"] == 2


def test_a_task_of_an_array_runs_its_own_member(scripted, sweep, tmp_path, monkeypatch):
    write, starts = scripted
    file, out = write("raise ValueError(sys.argv)"), tmp_path / "out"
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    _, result, _ = sweep("run", "--sweep", file, "--out", out)
    assert result["members"] == 1 and starts.read_text() == "x"
    assert "--config.train.seed=2" in next(iter(result["errors"].values()))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "7")
    code, _, said = sweep("run", "--sweep", file, "--out", out)
    assert code == 2 and "no member 7" in said and "0, 1" in said


def test_a_dry_run_checks_everything_and_touches_nothing(scripted, sweep, tmp_path):
    write, starts = scripted
    file, out = write("pass"), tmp_path / "out"
    code, result, _ = sweep("run", "--sweep", file, "--out", out, "--dry_run")
    assert code == 0 and result["would_train"] == 2 and "--config.train.seed=2" in result["commands"][1]
    assert not out.exists() and starts.read_text() == ""
    code, result, _ = sweep(
        "run", "--sweep", file, "--out", out, "--dry_run", "--engine", "slurm", "--workers", 1, "--sbatch=--mem=1G"
    )
    assert "--array=0,1%1" in result["command"] and "--mem=1G launch/slurm.sbatch sweep run" in result["command"]
    assert "--index" in result["command"] and not out.exists()
