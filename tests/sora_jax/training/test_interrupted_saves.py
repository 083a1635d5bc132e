"""Real runs whose saves are interrupted, whose newest step is damaged, whose directory is in use."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.training.checkpoint import committed_steps, load_params
from sora_jax.training.loop import train
from sora_jax.training.resume import read_starts
from sora_jax.training.run_lock import RunLock
from tests.sora_jax.training.saved_states import biggest_file


def test_a_signal_during_a_save_loses_nothing(toy, one_device, tmp_path):
    seen = []

    def batches(start, num_steps):
        for step in range(start, start + num_steps):
            if step == 5 and start == 0:  # step 4 has just begun to be saved, by threads of Orbax
                deadline = time.monotonic() + 60
                while not seen and time.monotonic() < deadline:
                    seen.extend(p.name for p in (tmp_path / "checkpoints").iterdir())
                os.kill(os.getpid(), signal.SIGTERM)
            yield toy.batch_at(step)

    result = train(toy.prepare(None, batches, keep_last=9), tmp_path, one_device)
    assert result["status"] == "preempted" and seen
    steps = committed_steps(tmp_path / "checkpoints")
    assert steps == [4, result["step"]]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [str(s) for s in steps]
    assert train(toy.prepare(None, batches, keep_last=9), tmp_path, one_device)["resumed_from"] == result["step"]


def test_a_damaged_newest_step_stops_the_run_and_from_step_goes_on_bitwise(toy, one_device, tmp_path):
    settings = {"keep_last": 9, "eval_every": 0}
    first = train(toy.prepare(num_steps=8, **settings), tmp_path, one_device)
    whole = load_params(tmp_path).params
    victim = biggest_file(tmp_path / "checkpoints" / "8" / "params")
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 16
    victim.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoints/8 is damaged: .*newest good one before it is step 4; .*_step 4$"):
        train(toy.prepare(num_steps=12, **settings), tmp_path, one_device)
    assert committed_steps(tmp_path / "checkpoints") == [4, 8], "nothing is moved or deleted unasked"
    again = train(toy.prepare(num_steps=8, **settings), tmp_path, one_device, from_step=4)
    assert (again["resumed_from"], again["step"], first["step"]) == (4, 8, 8)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path).params, whole)
    assert len(list((tmp_path / "checkpoints").glob("8.aside.*"))) == 1
    starts = list(read_starts(tmp_path))
    assert [(s["step"], s.get("from_step")) for s in starts] == [(0, None), (8, None), (4, 4)]


def test_a_directory_in_use_is_refused_before_anything_is_written(toy, one_device, tmp_path):
    with RunLock(tmp_path), pytest.raises(UserError, match=f"trained by process {os.getpid()} on"):
        train(toy.prepare(), tmp_path, one_device)
    assert not (tmp_path / "config.json").exists()


def test_a_run_says_what_made_it(toy, one_device, tmp_path):
    fast = str(tmp_path / "fast")
    train(toy.prepare(num_steps=2, fast_dir=fast, checkpoint_every=1), tmp_path / "run", one_device)
    made = json.loads((tmp_path / "run" / "run.json").read_text())
    assert made["fingerprints"] == {"data": "toy"} and made["code"]
    environment = made["environment"]
    assert {"command", "devices", "processes", "hosts", "python", "system", "packages"} <= environment.keys()
    assert environment["directory"] == os.getcwd() and "XLA_FLAGS" in environment["variables"]
    assert sum(environment["hosts"].values()) == environment["processes"] == 1
    assert environment["packages"]["jax"] == jax.__version__
    assert committed_steps(tmp_path / "fast" / made["id"] / "checkpoints") == [1, 2]
    assert committed_steps(tmp_path / "run" / "checkpoints") == [1, 2]
    train(toy.prepare(num_steps=4, fast_dir=fast, checkpoint_every=1), tmp_path / "run", one_device)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["id"] == made["id"]
