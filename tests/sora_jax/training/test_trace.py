import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from sora_jax.objectives.diffusion import prepare
from sora_jax.training.loop import train
from sora_jax.training.step_folders import committed_steps
from tests.sora_jax.training.diffusion_run import CONFIG, TRAIN, write_data
from tests.sora_jax.training.processes import losses


def asks_for_a_trace(toy, step):
    """Batches before one of which this process is asked for a trace."""

    def batches(start, num_steps):
        for number in range(start, start + num_steps):
            if number == step:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield toy.batch_at(number)

    return batches


def test_a_signal_traces_the_next_steps_of_a_live_run(toy, one_device, tmp_path, caplog):
    settings = {"num_steps": 16, "trace_steps": 3, "eval_every": 0}
    with caplog.at_level("INFO", logger="sora_jax"):
        train(toy.prepare(None, asks_for_a_trace(toy, 5), **settings), tmp_path, one_device)
    (folder,) = (tmp_path / "traces").iterdir()
    assert folder.name in ("step_6_process_0", "step_7_process_0")
    assert list(folder.rglob("*.xplane.pb")) and list(folder.rglob("*.trace.json.gz"))
    assert "tracing steps" in caplog.text and "traced the steps up to" in caplog.text


def test_a_trace_that_is_under_way_at_the_end_is_written(toy, one_device, tmp_path):
    settings = {"num_steps": 8, "trace_steps": 100, "eval_every": 0}
    train(toy.prepare(None, asks_for_a_trace(toy, 5), **settings), tmp_path, one_device)
    assert list((tmp_path / "traces").rglob("*.xplane.pb"))
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_trace_that_cannot_be_written_does_not_end_the_run(toy, one_device, tmp_path, caplog):
    (tmp_path / "traces").write_text("not a folder")
    settings = {"num_steps": 8, "eval_every": 0}
    result = train(toy.prepare(None, asks_for_a_trace(toy, 5), **settings), tmp_path, one_device)
    assert result["status"] == "finished"
    assert "no trace of the steps after" in caplog.text


@pytest.mark.long
def test_a_signal_to_the_whole_task_leaves_the_workers_alive_and_a_killed_one_costs_no_step(tmp_path, one_device):
    latents, run = write_data(tmp_path / "latents"), tmp_path / "run"
    settings = {"num_steps": 40, "num_workers": 1, "trace_steps": 2, "eval_every": 0, "preview_every": 0}
    command = [sys.executable, str(Path(__file__).with_name("diffusion_run.py")), str(latents), str(run)]
    process = subprocess.Popen(
        [*command, json.dumps({**settings, "checkpoint_every": 2})],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3]), "XLA_FLAGS": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        while process.poll() is None and not committed_steps(run / "checkpoints"):
            time.sleep(0.02)
        children = psutil.Process(process.pid).children()
        (worker,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        os.killpg(process.pid, signal.SIGUSR1)  # as `scancel --signal=USR1` does
        while process.poll() is None and not list(run.glob("traces/*/**/*.xplane.pb")):
            time.sleep(0.02)
        assert worker.is_running()
        worker.kill()
        errors = process.communicate(timeout=240)[1]
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "a worker of the loader died (exit code -9)" in errors
    config = {**CONFIG, "data": {**CONFIG["data"], "path": str(latents)}, "train": {**TRAIN, **settings}}
    config["train"]["num_workers"] = 0
    train(prepare(config), tmp_path / "calm", one_device)
    killed, calm = losses(run), losses(tmp_path / "calm")
    assert len(killed) == 40
    np.testing.assert_allclose(killed, calm, rtol=1e-5)
