"""The local launchers with real processes: small shell programs in place of `sora-jax`, and the toy's training."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sora_jax.training.resume import record_start

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "launch"
TOY = f"{sys.executable} {REPOSITORY / 'tests/launch/toy_verb.py'}"

# Commits checkpoint $1 of the run as far as a launcher can see.
COMMIT = 'commit() { mkdir -p "$RUN/checkpoints/$1"; }\n'
# A start from step $1, wherever that was saved.
FROM = 'from() { echo "{\\"time\\": 1.5, \\"step\\": $1, \\"code\\": {}}" >> "$RUN/starts.jsonl"; }\n'
# The number of this start: 1, 2, …
COUNT = 'echo x >> "$RUN/starts"; n=$(wc -l < "$RUN/starts")\n'


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts a launcher whose verb is a shell program; RUN is its folder. Ends it if the test did not."""
    processes = []

    def start(launcher: str, program: str, *words: object, **environment: object) -> subprocess.Popen:
        script = tmp_path / "program.sh"
        script.write_text(f"#!/usr/bin/env bash\n{COMMIT}{FROM}{COUNT}{program}\n")
        script.chmod(0o755)
        command = [str(LAUNCH / launcher), *map(str, words), "train", "--workdir", str(tmp_path)]
        settings = {"BACKOFF_S": 0, "RUN": tmp_path, "SORA_PROGRAM": script, **environment}
        process = subprocess.Popen(
            command,
            env={**os.environ, **{name: str(value) for name, value in settings.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(path: Path, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path} after {timeout_s} s"
        time.sleep(0.02)


def starts(run: Path) -> int:
    return len((run / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    "program, environment, code, num_starts",
    [
        ("exit 0", {}, 0, 1),
        ("exit 2", {}, 2, 1),  # a user's error is the same error again
        ('[ "$n" -lt 3 ] && exit 1; exit 0', {}, 0, 3),
        ('[ "$n" -lt 3 ] && kill -KILL $$; exit 0', {}, 0, 3),
        ('[ "$n" -lt 3 ] && exit 76; exit 2', {}, 2, 3),
        ('[ "$n" -lt 3 ] && exit 75; exit 0', {}, 0, 3),  # somebody else asked the verb to stop
        ("exit 7", {"MAX_RESTARTS": 2}, 7, 3),
        ("exit 7", {"MAX_RESTARTS": 0}, 7, 1),
        ('[ "$n" -gt 6 ] || commit "$n"; exit 7', {"MAX_RESTARTS": 1}, 7, 7),  # progress six times, then none
        # What a start saves in the fast tier alone shows in where the next one begins: four times newer, then the same.
        ("from $((n < 6 ? n - 1 : 4)); exit 7", {"MAX_RESTARTS": 1}, 7, 6),
        ("from 0; exit 7", {"MAX_RESTARTS": 1}, 7, 2),
    ],
)
def test_a_verb_is_started_again_while_that_can_help(start, tmp_path, program, environment, code, num_starts):
    process = start("restart.sh", program, **environment)
    errors = process.communicate(timeout=30)[1]
    assert (process.returncode, starts(tmp_path)) == (code, num_starts), errors


def test_giving_up_names_the_code_and_the_limit(start):
    errors = start("restart.sh", "exit 9", MAX_RESTARTS=1).communicate(timeout=30)[1]
    assert "exit code 9 after 1 restarts in a row without a new checkpoint (MAX_RESTARTS=1)" in errors


def test_a_launcher_sees_where_a_run_itself_says_that_it_started(tmp_path):
    """`starts.jsonl` as the library writes it, and with a line torn by a kill."""
    command = ["bash", "-c", f'source "{LAUNCH}/supervise.sh"; newest_checkpoint "$0"', str(tmp_path)]

    def seen() -> int:
        return int(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout)

    assert seen() == -1
    description = {"code": {"version": '"step": 999, '}, "environment": {"command": '{"time": 1, "step": 999, '}}
    for step, expected in ((0, -1), (40, 40), (120, 120), (90, 90)):
        record_start(tmp_path, step, 90 if step == 90 else None, description)
        assert seen() == expected
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"time": 1.5, "step": 12')
    assert seen() == 90
    (tmp_path / "checkpoints/100").mkdir(parents=True)
    (tmp_path / "checkpoints/110.saving").mkdir()
    assert seen() == 100


SAVING = """
trap 'echo signal >> "$RUN/signals"; sleep 0.3; exit 75' TERM
touch "$RUN/ready"
for i in $(seq 200); do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_forwarded_once_and_the_code_passed_on(start, tmp_path, number):
    process = start("restart.sh", SAVING)
    wait_for(tmp_path / "ready")
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)
    assert process.communicate(timeout=30)[1].count("asked to stop") == 1
    assert (process.returncode, starts(tmp_path)) == (75, 1)
    assert (tmp_path / "signals").read_text() == "signal\n"


def test_a_signal_before_the_verb_can_catch_it_loses_nothing(start, tmp_path):
    process = start("restart.sh", 'touch "$RUN/ready"; exec sleep 30')
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert (process.returncode, starts(tmp_path)) == (75, 1)


def test_a_signal_between_two_starts_ends_the_waiting(start, tmp_path):
    process = start("restart.sh", "exit 1", BACKOFF_S=25)
    assert "in 25 s" in process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert (process.returncode, starts(tmp_path)) == (75, 1)


@pytest.mark.parametrize(
    "launcher, words, environment, says",
    [
        ("restart.sh", (), {"MAX_RESTARTS": "many"}, "MAX_RESTARTS is 'many', but must be a whole number"),
        ("restart.sh", (), {"PROCESSES": 0}, "PROCESSES is '0', but must be a whole number of at least 1"),
        ("processes.sh", ("two",), {}, "the number of processes is 'two'"),
    ],
)
def test_bad_settings_are_a_users_error(start, launcher, words, environment, says):
    process = start(launcher, "exit 0", *words, **environment)
    assert says in process.communicate(timeout=30)[1] and process.returncode == 2


def test_each_process_knows_its_number_and_the_coordinator(start):
    program = 'echo "out $SORA_PROCESS_ID"; echo "$SORA_COORDINATOR of $SORA_NUM_PROCESSES" >&2'
    process = start("processes.sh", program, 3)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output == "out 0\n", "the last line of stdout is process 0's JSON"
    lines = sorted(errors.splitlines())
    address = lines[0].split()[1]
    assert address.startswith("127.0.0.1:")
    expected = [f"[{i}] {address} of 3" for i in range(3)] + ["[1] out 1", "[2] out 2"]
    assert lines == sorted(expected)


def test_when_a_process_dies_the_others_are_asked_to_stop(start, tmp_path):
    program = f'if [ "$SORA_PROCESS_ID" = 1 ]; then sleep 0.5; kill -KILL $$; fi\n{SAVING}'
    process = start("processes.sh", program, 3)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 137, errors
    assert "ended with code 137; asking the other 2 to stop" in errors
    assert (tmp_path / "signals").read_text() == "signal\n" * 2


def test_a_process_that_does_not_stop_is_killed(start):
    program = '[ "$SORA_PROCESS_ID" = 0 ] && exit 3\ntrap "" TERM\nwhile :; do sleep 0.1; done'
    process = start("processes.sh", program, 2, GRACE_S=1)
    process.communicate(timeout=30)
    assert process.returncode == 3


def test_a_signal_reaches_every_process_once(start, tmp_path):
    process = start("processes.sh", SAVING.replace("ready", "ready$SORA_PROCESS_ID"), 2)
    for number in range(2):
        wait_for(tmp_path / f"ready{number}")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert (tmp_path / "signals").read_text() == "signal\n" * 2


TOY_ENVIRONMENT = {"SORA_PROGRAM": TOY, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": "", "BACKOFF_S": "0"}


def toy(*words: object) -> subprocess.CompletedProcess[str]:
    """A launcher and its words, with the toy's training as the verb's program."""
    environment, command = {**os.environ, **TOY_ENVIRONMENT}, [str(word) for word in words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


def test_a_run_that_crashed_and_was_restarted_ends_bitwise_like_one_that_was_not(tmp_path, assert_same_runs):
    words = ("train", "--steps", 20, "--workdir")
    crash = ("--fail", 134, "--at", 14)
    broken = toy(LAUNCH / "restart.sh", *words, tmp_path / "broken", *crash)
    assert broken.returncode == 0, broken.stderr
    resumed = json.loads(broken.stdout.splitlines()[-1])["resumed_from"]
    assert resumed in (5, 10)  # whether the save of step 10 was committed before the crash
    assert f"exit code 134, newest checkpoint {resumed}; restart 1 of 5" in broken.stderr
    assert toy(LAUNCH / "local.sh", *words, tmp_path / "whole").returncode == 0
    assert_same_runs(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.hosts
def test_a_host_that_comes_too_late_is_met_by_the_next_start(tmp_path):
    """Two hosts with a launcher each; the second begins when the first has waited in vain."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    place = {"SORA_COORDINATOR": address, "SORA_NUM_PROCESSES": "2", "SORA_START_TIMEOUT_S": "15", "MAX_RESTARTS": "20"}
    command = [str(LAUNCH / "restart.sh"), "train", "--steps", "2", "--workdir", str(tmp_path / "run")]
    with contextlib.ExitStack() as both:

        def begin(number: int) -> subprocess.Popen[str]:
            environment = {**os.environ, **TOY_ENVIRONMENT, **place, "SORA_PROCESS_ID": str(number)}
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            both.enter_context(process)
            both.callback(process.terminate)
            return process

        first = begin(0)
        said = []
        while not said or "restart 1 of 20" not in said[-1]:
            said.append(first.stderr.readline())
            assert said[-1], said
        assert any("process(es) 1 of 2 did not come" in line for line in said)
        assert "exit code 76, newest checkpoint -1" in said[-1]
        second = begin(1)
        outputs = [process.communicate(timeout=280) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert json.loads(outputs[0][0].splitlines()[-1])["step"] == 2
