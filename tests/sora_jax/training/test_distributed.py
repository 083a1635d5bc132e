"""Where a process finds its place, with one process alone: the many are in test_many_processes.py."""

import os
import subprocess
import sys

import jax
import pytest

from data_pipeline.errors import SystemFailure, UserError
from sora_jax.training.distributed import (
    _verdict,
    agreed,
    barrier,
    find_place,
    is_leader,
    is_platform_known,
    joined,
    local_devices,
)
from sora_jax.training.peers import EXIT_HOST_LOST
from sora_jax.training.rendezvous import Place

STEP = {"SLURM_JOB_ID": "12345", "SLURM_STEP_NODELIST": "gpu[07-09,12]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"SORA_NUM_PROCESSES": "1"}, None),
        ({"SORA_COORDINATOR": "a:1", "SORA_NUM_PROCESSES": "1", "SORA_PROCESS_ID": "0"}, None),
        ({"SORA_COORDINATOR": "a:1", "SORA_NUM_PROCESSES": "2", "SORA_PROCESS_ID": "1"}, Place("a:1", 2, 1)),
        (STEP, Place("gpu07:20345", 4, 2)),
        ({**STEP, "SLURM_STEP_NODELIST": "a1,b2"}, Place("a1:20345", 4, 2)),
        ({**STEP, "SORA_COORDINATOR": "10.0.0.1:99"}, Place("10.0.0.1:99", 4, 2)),
        ({**STEP, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "12345", "SLURM_NTASKS": "4"}, None),  # the batch script itself is no task of a step
    ],
)
def test_a_place_follows_from_the_variables(environment, place):
    assert find_place(environment) == place


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"SORA_NUM_PROCESSES": "2"}, "SORA_COORDINATOR is not set"),
        ({"SORA_PROCESS_ID": "0"}, "SORA_COORDINATOR is not set"),
        ({"SORA_COORDINATOR": "a:1"}, "set SORA_NUM_PROCESSES and SORA_PROCESS_ID too"),
        ({"SORA_COORDINATOR": "a:1", "SORA_NUM_PROCESSES": "2"}, "set SORA_NUM_PROCESSES and SORA_PROCESS_ID too"),
        ({"SORA_COORDINATOR": "a:1", "SORA_NUM_PROCESSES": "2", "SORA_PROCESS_ID": "2"}, "is 2, but must be .* 0 to 1"),
        (
            {"SORA_COORDINATOR": "a:1", "SORA_NUM_PROCESSES": "0", "SORA_PROCESS_ID": "0"},
            "is 0, but must be at least 1",
        ),
        ({"SORA_COORDINATOR": "a:1", "SORA_NUM_PROCESSES": "two"}, "SORA_NUM_PROCESSES is 'two'"),
    ],
)
def test_variables_that_name_only_a_part_are_an_error(environment, reason):
    with pytest.raises(UserError, match=reason):
        find_place(environment)


@pytest.mark.parametrize("name", ["SORA_SILENCE_S", "SORA_START_TIMEOUT_S"])
@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_time_is_an_error(name, text):
    place = {"SORA_COORDINATOR": "127.0.0.1:9", "SORA_NUM_PROCESSES": "2", "SORA_PROCESS_ID": "1"}
    with (
        pytest.raises(UserError, match=f"{name} is '{text}', but must be a number of seconds"),
        joined({**place, name: text}),
    ):
        pass


def test_only_a_gpu_node_with_several_tasks_gives_each_one_device():
    task = {"SLURM_LOCALID": "3", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    assert local_devices(task) == [3]
    assert local_devices({**task, "CUDA_VISIBLE_DEVICES": "3"}) is None
    assert local_devices({**task, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}) is None
    assert local_devices({**task, "SORA_PROCESS_ID": "3"}) is None
    assert local_devices({}) is None


def test_the_platform_is_asked_only_where_it_speaks_of_several_hosts():
    assert is_platform_known({"TPU_WORKER_HOSTNAMES": "host-0,host-1"})
    assert is_platform_known({"TPU_PROCESS_ADDRESSES": "a:8471,b:8471"})
    assert is_platform_known({"MEGASCALE_NUM_SLICES": "2"})
    assert not is_platform_known({"TPU_WORKER_HOSTNAMES": "host-0"})
    assert not is_platform_known({"TPU_WORKER_HOSTNAMES": "host-0,host-1", "JAX_PLATFORMS": "cpu"})
    assert not is_platform_known({})


def test_alone_there_is_nothing_to_join_or_to_wait_for():
    with joined({}):
        barrier("nobody else")
        assert is_leader() and agreed("value", {"step": 3}) == {"step": 3}
    with pytest.raises(ZeroDivisionError), joined({}):
        raise ZeroDivisionError


def test_what_ends_a_process_becomes_an_exit_code_and_a_reason(capsys):
    assert _verdict(UserError("no clips"))[:2] == (2, "error: no clips")
    assert _verdict(SystemFailure("the disk is full"))[:2] == (3, "error: the disk is full")
    assert _verdict(OSError(28, "No space left"))[0] == 3
    assert _verdict(KeyboardInterrupt())[0] == 130
    assert _verdict(ValueError("a bug"))[:2] == (1, "ValueError: a bug")
    assert "ValueError: a bug" in capsys.readouterr().err
    broken = jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer")
    code, reason, wait_s = _verdict(broken)
    assert code == EXIT_HOST_LOST and "Connection closed by peer" in reason and wait_s > 0


def test_a_save_that_failed_by_a_lost_process_is_no_user_s_error():
    failed = UserError("saving into runs/x failed")
    failed.__cause__ = jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")
    assert _verdict(failed)[0] == EXIT_HOST_LOST
    failed.__cause__ = ValueError("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer")
    assert _verdict(failed)[0] == EXIT_HOST_LOST
    failed.__cause__ = ValueError("the connection's name is 3 letters long")
    assert _verdict(failed)[0] == 2


def test_a_wrong_coordinator_is_an_error_on_one_line(repository, tmp_path):
    place = {"SORA_COORDINATOR": "127.0.0.1:9", "SORA_NUM_PROCESSES": "2", "SORA_PROCESS_ID": "1"}
    program = [sys.executable, "-m", "sora_jax.commands.main", "train", "--config", "configs/dit_quickstart.py"]
    done = subprocess.run(
        [*program, "--workdir", str(tmp_path / "run")],
        env={**os.environ, **place, "SORA_START_TIMEOUT_S": "1"}, cwd=repository, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_HOST_LOST and not (tmp_path / "run").exists()
    # where a plugin for GPUs is installed and no driver is, its runtime has a word before ours
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sora-jax: ")]
    assert "process 1 could not reach process 0 at 127.0.0.1:9 within 1 s" in line and "refused" in line
