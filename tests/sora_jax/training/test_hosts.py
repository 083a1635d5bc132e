"""Two and four processes are one, and devices may change within a run; what hangs, or is cut off, is found out."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sora_jax.evaluation.storm_link import Link
from sora_jax.training.metrics import read_metrics
from sora_jax.training.step_folders import UNFINISHED, committed_steps
from tests.sora_jax.training.diffusion_run import write_data
from tests.sora_jax.training.processes import Processes, losses, run

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1800)]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and the command `ip`"
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("latents") / "latents")


@pytest.fixture(scope="module")
def alone(latents, tmp_path_factory) -> tuple[dict, Path]:
    """What a run of one process and one device printed, and its directory."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    return run("diffusion_run.py", latents, directory, json.dumps({"num_steps": 24}), count=1, devices=1), directory


def across(link: Link) -> dict[str, Any]:
    """The options of `Processes` that put one process on each host of `link`."""
    prefixes = [link.inside(number, []) for number in range(2)]
    return {"count": 2, "prefixes": prefixes, "coordinator": f"{link.addresses[0]}:8476"}


def assert_same_run(directory: Path, alone: Path) -> None:
    """The losses of two runs: the first within 1e-5, the next 20, and the held-out ones, within 1e-4."""
    ours, theirs = losses(directory), losses(alone)
    assert len(ours) == len(theirs) == 24
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1:21], theirs[1:21], rtol=1e-4)
    held_out = [[row["loss"] for row in read_metrics(d) if row["kind"] == "eval"] for d in (directory, alone)]
    np.testing.assert_allclose(*held_out, rtol=1e-4)


def unfinished(directory: Path) -> list[Path]:
    return [path for pattern in UNFINISHED for path in directory.glob(pattern)]


@pytest.mark.long
def test_processes_and_a_change_of_devices_change_only_the_rounding(latents, alone, tmp_path):
    """4 devices of two processes, then 2 of one, then 8 of four, in one run."""
    digests, resumed = {}, []
    legs = ((2, 2, {}, 7), (1, 2, {}, 14), (4, 2, {"mesh": {"data": 2, "fsdp": 2, "context": 2}}, -1))
    for count, devices, changed, signal_at in legs:
        settings = json.dumps({"num_steps": 24, "preview_every": 24, "signal_at": signal_at, **changed})
        leg = run("diffusion_run.py", latents, tmp_path / "moved", settings, count=count, devices=devices)
        resumed.append(leg["resumed_from"])
        assert leg["status"] == ("finished" if signal_at < 0 else "preempted")
        digests |= leg["digests"]
    whole, directory = alone
    assert digests == whole["digests"] and list(digests) == [str(step) for step in range(24)]
    assert 0 == resumed[0] < resumed[1] < resumed[2] < 24
    assert_same_run(tmp_path / "moved", directory)
    assert list((tmp_path / "moved/previews").iterdir())


@needs_root
def test_two_hosts_are_one_process(latents, alone, tmp_path):
    with Link() as link:
        settings = json.dumps({"num_steps": 24})
        result = run("diffusion_run.py", latents, tmp_path / "run", settings, devices=2, **across(link))
    whole, directory = alone
    assert result["digests"] == whole["digests"]
    assert_same_run(tmp_path / "run", directory)


@needs_root
def test_a_cut_cable_ends_both_hosts_and_the_run_goes_on(tmp_path):
    environment = {"TOY_STEP_SECONDS": "0.05", "SORA_SILENCE_S": "8"}
    with (
        Link() as link,
        Processes(
            "toy_run.py", tmp_path / "run", 1000, devices=1, environment=environment, **across(link)
        ) as processes,
    ):
        processes.wait_for_checkpoint(tmp_path / "run")
        link.cut()
        assert processes.wait() == [76, 76], processes.errors
    assert "process(es) 1 have not been heard for 8 s" in processes.errors[0]
    assert "has not answered" in processes.errors[1] or "not been heard" in processes.errors[1]
    reached = committed_steps(tmp_path / "run/checkpoints")[-1]
    result = run("toy_run.py", tmp_path / "run", reached + 5, count=2, devices=1)
    assert result["resumed_from"] == reached and result["status"] == "finished"


def test_a_signal_during_a_save_stops_all_at_a_committed_step(tmp_path):
    environment = {"TOY_STEP_SECONDS": "0.05", "TOY_TRAIN": json.dumps({"keep_last": 100})}
    directory = tmp_path / "run/checkpoints"
    with Processes("toy_run.py", tmp_path / "run", 1000, count=2, devices=1, environment=environment) as processes:
        processes.wait_for_checkpoint(tmp_path / "run")
        while not unfinished(directory):
            assert processes.all[1].poll() is None
            time.sleep(0.001)
        processes.all[1].send_signal(signal.SIGTERM)
        assert processes.wait() == [75, 75], processes.errors
        result = processes.result()
    steps = committed_steps(directory)
    assert steps[-1] == result["step"] and not unfinished(directory)
    assert set(range(5, result["step"], 5)) <= set(steps)


def test_a_loader_that_hangs_ends_all_with_stacks(tmp_path):
    settings = json.dumps({"hang_timeout_s": 3})
    trouble = {"TOY_TROUBLE": json.dumps({"process": 1, "step": 9, "sleep_s": 600}), "TOY_TRAIN": settings}
    with Processes("toy_run.py", tmp_path / "run", 40, count=2, devices=1, environment=trouble) as processes:
        assert processes.wait() == [76, 76], processes.errors
    assert any("no progress for" in text and "data" in text for text in processes.errors), processes.errors
    for number in range(2):
        assert "toy_run.py" in (tmp_path / f"run/hang_{number}.txt").read_text()


def test_a_host_that_stops_answering_is_lost_to_the_other_and_ends_when_it_wakes(tmp_path):
    environment = {"TOY_STEP_SECONDS": "0.05", "SORA_SILENCE_S": "8"}
    with Processes("toy_run.py", tmp_path / "run", 1000, count=2, devices=1, environment=environment) as processes:
        processes.wait_for_checkpoint(tmp_path / "run")
        processes.all[1].send_signal(signal.SIGSTOP)
        assert processes.all[0].wait(120) == 76
        processes.all[1].send_signal(signal.SIGCONT)
        assert processes.all[1].wait(120) in (76, -signal.SIGABRT)
        processes.wait()
    assert "process(es) 1 have not been heard for 8 s" in processes.errors[0]


def test_clocks_that_are_apart_are_an_error_that_names_both(tmp_path):
    late = [{}, {"TOY_CLOCK_AHEAD_S": "100"}]
    with Processes("toy_run.py", tmp_path / "run", 10, count=2, devices=1, each=late) as processes:
        assert processes.wait() == [2, 2], processes.errors
    assert all("the clocks of process 0 on" in text and "set them by NTP" in text for text in processes.errors)
    assert not (tmp_path / "run").exists()
