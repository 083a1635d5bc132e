"""The TPU VM launcher: its dry run, its workers' half for real, and its supervisor against a cloud in a folder.

The cloud is a program called gcloud that keeps the state of one queued resource in a file and runs the command of `ssh`
in a folder of this machine, the worker: what is tested is every line that the launcher would run there.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "launch"
VERB = ("train", "--workdir", "/data/runs/a b", "--config.train.mesh={'data': 8}")
SETTINGS = {"NAME": "dit-xl", "ZONE": "us-east5-a", "ACCELERATOR": "v5p-16", "RUNTIME": "v2-alpha-tpuv5"}
CLONE = {"REPOSITORY": "https://example.com/sora_jax.git", "REF": "main"}

CLOUD = """#!/usr/bin/env bash
set -euo pipefail
cd "$CLOUD"
echo "$4" >> calls
case "$4" in
  list) cat state 2> /dev/null || true ;;
  create) echo ACTIVE > state && mkdir -p worker ;;
  delete) rm -rf state worker ;;
  ssh)
    for word in "$@"; do
      case "$word" in --command=*) cd worker && exec bash -c "${word#--command=}" ;; esac
    done ;;
esac
"""


def tpu_vm(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PATH": os.environ["PATH"], **SETTINGS, **CLONE, **environment}
    command = [str(LAUNCH / "tpu_vm.sh"), *words]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)


def dry_run(*words: str, **environment: str) -> list[list[str]]:
    """The commands that would run, as words."""
    done = tpu_vm(*words, DRY_RUN="1", **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, ["--node-id=dit-xl"]),
        ({"SPOT": "1"}, ["--node-id=dit-xl", "--spot"]),
        ({"RESERVED": "1", "PROJECT": "p"}, ["--node-id=dit-xl", "--reserved", "--project=p"]),
        ({"SLICES": "4"}, ["--node-count=4", "--node-prefix=dit-xl"]),
    ],
)
def test_machines_are_asked_for(environment, expected):
    (words,) = dry_run("create", **environment)
    assert words[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "dit-xl"]
    always = {"--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5", "--zone=us-east5-a"}
    assert set(words[6:]) == {*always, *expected}


def test_a_verb_survives_this_shell_and_the_workers():
    (words,) = dry_run("start", *VERB)
    assert words[4:8] == ["ssh", "dit-xl", "--node=all", "--worker=all"]
    remote = words[8].removeprefix("--command=")
    assert shlex.split(remote) == ["bash", "sora_jax/launch/tpu_vm_worker.sh", "start", *VERB]


def test_a_supervisors_dry_run_shows_the_whole_life():
    commands = dry_run("supervise", *VERB)
    assert [words[4] for words in commands] == ["list", "create", "ssh", "ssh", "ssh", "delete"]


@pytest.mark.parametrize(
    "words, environment, says",
    [
        (("create",), {"RUNTIME": ""}, "set RUNTIME in the environment"),
        (("start",), {}, "name a verb"),
        (("begin",), {}, "'begin' is none of create, setup, start"),
        (("create",), {"SLICES": "0"}, "SLICES is '0'"),
    ],
)
def test_bad_settings_are_a_users_error(words, environment, says):
    done = tpu_vm(*words, DRY_RUN="1", **environment)
    assert done.returncode == 2 and says in done.stderr


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a launcher that meets the cloud of `tmp_path`; ends what still runs there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gcloud").write_text(CLOUD)
    (tmp_path / "bin/gcloud").chmod(0o755)
    verb = tmp_path / "verb.sh"
    verb.write_text('trap "exit 75" TERM\n. "$CLOUD/verb"\n')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    yield {"PATH": path, "CLOUD": str(tmp_path), "SORA_PROGRAM": f"bash {verb}", "POLL_S": "0", "BACKOFF_S": "0"}
    if (tmp_path / "worker/sora_jax/launch").is_dir():
        worker(tmp_path, "stop")


def set_up(cloud_dir: Path) -> None:
    """What `setup` would leave on a worker, without the network."""
    shutil.copytree(LAUNCH, cloud_dir / "worker/sora_jax/launch", dirs_exist_ok=True)
    (cloud_dir / "worker/sora_jax/runs").mkdir(exist_ok=True)
    (cloud_dir / "worker/sora_jax/runs/worker.ready").touch()


def worker(cloud_dir: Path, *words: str, **environment: str) -> str:
    command = ["bash", str(cloud_dir / "worker/sora_jax/launch/tpu_vm_worker.sh"), *words]
    settings = {**os.environ, **environment}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()


def wait_until(what: str, cloud_dir: Path, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := worker(cloud_dir, "status")) != what:
        assert time.monotonic() < deadline, f"the worker is {found}, not {what}, after {timeout_s} s"
        time.sleep(0.05)


@pytest.mark.parametrize("program, code", [("exit 0", 0), ("exit 2", 2), ("sleep 20 & wait", 75)])
def test_a_worker_runs_the_verb_behind_the_connections_back(cloud, tmp_path, program, code):
    (tmp_path / "worker/sora_jax").mkdir(parents=True)
    set_up(tmp_path)
    (tmp_path / "verb").write_text(f'touch "$CLOUD/begun"\n{program}\n')
    assert worker(tmp_path, "status") == "idle"
    worker(tmp_path, "start", *VERB, **cloud)
    if code == 75:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        assert worker(tmp_path, "status") == "running"
        worker(tmp_path, "stop")
    wait_until(f"ended {code}", tmp_path)


def test_machines_that_are_taken_away_are_replaced_and_the_verb_started_again(cloud, tmp_path):
    """The cloud takes the machines away during the first start; the second finishes."""
    taken = 'echo SUSPENDED > "$CLOUD/state"; kill -KILL 0'  # the verb and its supervisor are gone with the machine
    (tmp_path / "verb").write_text(
        f'echo x >> "$CLOUD/begun"\n[ "$(wc -l < "$CLOUD/begun")" -gt 1 ] || {{ {taken}; }}\n'
    )
    repository = tmp_path / "origin"
    shutil.copytree(LAUNCH, repository / "launch")
    # The workers' setup needs the network; everything else on this machine is the real thing.
    script = repository / "launch/tpu_vm_worker.sh"
    script.write_text(script.read_text().replace("\nsetup() {\n", '\nsetup() {\n  touch "$READY"\n  return\n', 1))
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for words in (("init", "--quiet", "-b", "main"), ("add", "-A"), (*author, "commit", "--quiet", "-m", "x")):
        subprocess.run(["git", *words], cwd=repository, check=True)
    done = tpu_vm("supervise", *VERB, **cloud, REPOSITORY=str(repository))
    assert done.returncode == 0, done.stderr
    assert "the machines are SUSPENDED; restart 1 of 100" in done.stderr
    assert (tmp_path / "begun").read_text() == "x\nx\n"
    calls = (tmp_path / "calls").read_text().split()
    assert (calls.count("create"), calls.count("delete")) == (2, 1)
