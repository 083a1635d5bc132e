"""Two real processes as one run: they stop together, and whoever is lost or fails takes the others along."""

import json
import signal

import jax
import numpy as np
import pytest

from sora_jax.training.checkpoint import load_params
from sora_jax.training.metrics import read_metrics
from sora_jax.training.spikes import Skip, read_skips
from tests.sora_jax.training.processes import Processes, losses, run


@pytest.mark.long
def test_one_signal_stops_all_after_the_same_step_and_the_end_is_bitwise_the_same(tmp_path):
    environment = {"TOY_STEP_SECONDS": "0.05", "TOY_TRAIN": json.dumps({"log_every": 1}), "SORA_SILENCE_S": "40"}
    options = {"count": 2, "devices": 2, "environment": environment}
    run("toy_run.py", tmp_path / "whole", 40, **options)
    with Processes("toy_run.py", tmp_path / "stopped", 40, **options) as processes:
        processes.wait_for_checkpoint(tmp_path / "stopped")
        processes.all[1].send_signal(signal.SIGTERM)
        processes.all[1].send_signal(signal.SIGTERM)
        assert processes.wait() == [75, 75], processes.errors
        stopped = processes.result()
    assert stopped["status"] == "preempted" and 5 < stopped["step"] < 40
    with Processes("toy_run.py", tmp_path / "stopped", 40, **options) as processes:
        processes.wait_for_checkpoint(tmp_path / "stopped", after=stopped["step"])
        processes.all[1].kill()
        codes = processes.wait()
        assert codes == [76, -signal.SIGKILL], processes.errors
        reasons = ("lost contact with another process", "process(es) 1 have not been heard", "no progress for")
        assert any(reason in processes.errors[0] for reason in reasons), processes.errors
    last = run("toy_run.py", tmp_path / "stopped", 40, **options)
    assert stopped["step"] < last["resumed_from"] < 40
    states = [load_params(tmp_path / d).params for d in ("whole", "stopped")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    np.testing.assert_array_equal(*map(losses, (tmp_path / "whole", tmp_path / "stopped")))


def test_each_process_tells_its_time_and_memory(tmp_path):
    slow = {"TOY_TRAIN": json.dumps({"log_every": 2, "eval_every": 0}), "TOY_STEP_SECONDS": "0.25"}
    run("toy_run.py", tmp_path, 24, count=2, devices=1, environment=slow)
    rows = read_metrics(tmp_path)
    hosts, trained = ([row for row in rows if row["kind"] == kind] for kind in ("hosts", "train"))
    assert {row["step"] for row in hosts} <= {row["step"] for row in trained}
    told = {name: value for name, value in hosts[-1].items() if name not in ("step", "kind")}
    assert told.keys() == {f"{name}/{process}" for name in ("host_seconds", "rss_gib") for process in (0, 1)}
    assert all(told[f"rss_gib/{process}"] > 0.05 for process in (0, 1))
    own = {row["host_seconds"] for row in trained if "host_seconds" in row}
    assert told["host_seconds/0"] in own, "process 0 told what its own row said"


def test_a_loader_that_fails_ends_all_with_its_reason(tmp_path):
    trouble = {"TOY_TROUBLE": json.dumps({"process": 1, "step": 6, "sleep_s": 0})}
    with Processes("toy_run.py", tmp_path / "run", 40, count=2, devices=1, environment=trouble) as processes:
        assert processes.wait() == [76, 1], processes.errors
    assert "ended by process 1" in processes.errors[0] and "the loader's disk is gone" in processes.errors[0]


def test_a_spike_takes_all_back_to_the_same_checkpoint(tmp_path):
    environment = {
        "TOY_TROUBLE": json.dumps({"spikes": [11, 12, 13, 14]}),
        "TOY_TRAIN": json.dumps({"rollback_after": 3, "rollback_skip": 12, "eval_every": 0, "log_every": 1}),
    }
    for name, count, devices in (("one", 1, 2), ("two", 2, 1)):
        run("toy_run.py", tmp_path / name, 30, count=count, devices=devices, environment=environment)
    assert read_skips(tmp_path / "one") == [Skip(10, 22, 16, "at least 3 of the steps 12 to 14 were not applied")]
    assert read_skips(tmp_path / "two") == read_skips(tmp_path / "one")
    one, two = (np.array(losses(tmp_path / name), float) for name in ("one", "two"))  # a spike's loss is none
    np.testing.assert_allclose(one, two, rtol=1e-5)
