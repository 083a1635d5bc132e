"""The TPU VM launcher: its dry run, its workers' half for real, and its supervisor against a cloud in a folder.

The cloud is a program called gcloud that keeps queued resources as folders, with a file for the state and a folder of
this machine for each worker, where it runs the command of `ssh`: what is tested is every line that the launcher would
run there. It answers as the real one does: NOT_FOUND and code 1 for what is not there, a state before ACTIVE for what
was just asked for, talk on stderr, and a worker that fails does not keep the others from their command.
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
verb="$4" name="$5"
echo "$verb" >> calls
missing() {
  echo "ERROR: (gcloud.compute.tpus.queued-resources.$verb) NOT_FOUND: Resource '$name' was not found" >&2
  exit 1
}
[ "$verb" = create ] || [ -d "cloud/$name" ] || missing
case "$verb" in
  describe)
    cat "cloud/$name/state"
    [ "$(cat "cloud/$name/state")" != PROVISIONING ] || echo ACTIVE > "cloud/$name/state" ;;
  create)
    mkdir "cloud/$name" # fails where it is there already
    echo PROVISIONING > "cloud/$name/state"
    for ((i = 0; i < ${WORKERS:-1}; i++)); do mkdir "cloud/$name/worker$i"; done ;;
  delete) rm -rf "cloud/$name" ;;
  ssh)
    code=0
    for worker in "cloud/$name"/worker*; do
      echo "SSH: Attempting to connect to worker ${worker##*worker}..." >&2
      for word in "$@"; do
        case "$word" in --command=*) (cd "$worker" && exec bash -c "${word#--command=}") || code=255 ;; esac
      done
    done
    exit "$code" ;;
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
    commands = dry_run("supervise", *VERB, BUCKET="my-bucket")
    assert [words[4] for words in commands] == ["describe", "create", "ssh", "ssh", "ssh", "delete"]


@pytest.mark.parametrize(
    "words, environment, says",
    [
        (("create",), {"RUNTIME": ""}, "set RUNTIME in the environment"),
        (("start",), {}, "name a verb"),
        (("begin",), {}, "'begin' is none of create, setup, start"),
        (("create",), {"SLICES": "0"}, "SLICES is '0'"),
        # A supervisor would start again from nothing.
        (("supervise", *VERB), {}, "set BUCKET in the environment"),
        (
            ("supervise", "train", "--workdir=runs/x"),
            {"BUCKET": "b"},
            "--workdir runs/x would be lost with its machine",
        ),
    ],
)
def test_bad_settings_are_a_users_error(words, environment, says):
    done = tpu_vm(*words, DRY_RUN="1", **environment)
    assert done.returncode == 2 and says in done.stderr


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a launcher that meets the cloud of `tmp_path`; ends what still runs there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "cloud").mkdir()
    (tmp_path / "bin/gcloud").write_text(CLOUD)
    (tmp_path / "bin/gcloud").chmod(0o755)
    verb = tmp_path / "verb.sh"
    verb.write_text('trap "exit 75" TERM\n. "$CLOUD/verb"\n')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    quick = {"POLL_S": "0", "BACKOFF_S": "0", "BUCKET": "my-bucket"}
    yield {"PATH": path, "CLOUD": str(tmp_path), "SORA_PROGRAM": f"bash {verb}", **quick}
    for script in tmp_path.glob("cloud/*/worker*/sora_jax/launch/tpu_vm_worker.sh"):
        subprocess.run(["bash", str(script), "stop"], timeout=30, check=True)


def set_up(cloud_dir: Path) -> None:
    """What `setup` would leave on a worker, without the network."""
    shutil.copytree(LAUNCH, cloud_dir / "cloud/dit-xl/worker0/sora_jax/launch")
    (cloud_dir / "cloud/dit-xl/worker0/sora_jax/runs").mkdir()
    (cloud_dir / "cloud/dit-xl/worker0/sora_jax/runs/worker.ready").touch()


def worker(cloud_dir: Path, *words: str, **environment: str) -> str:
    command = ["bash", str(cloud_dir / "cloud/dit-xl/worker0/sora_jax/launch/tpu_vm_worker.sh"), *words]
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


@pytest.fixture
def origin(tmp_path: Path) -> str:
    """A repository whose workers' setup needs no network; everything else in it is the real thing."""
    repository = tmp_path / "origin"
    shutil.copytree(LAUNCH, repository / "launch")
    script = repository / "launch/tpu_vm_worker.sh"
    script.write_text(script.read_text().replace("\nsetup() {\n", '\nsetup() {\n  touch "$READY"\n  return\n', 1))
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for words in (("init", "--quiet", "-b", "main"), ("add", "-A"), (*author, "commit", "--quiet", "-m", "x")):
        subprocess.run(["git", *words], cwd=repository, check=True)
    return str(repository)


def test_machines_that_are_taken_away_are_replaced_and_the_verb_started_again(cloud, tmp_path, origin):
    """The cloud takes the machines away during the first start; the second finishes.

    Other machines, whose name begins with the same letters, are neither asked about nor touched.
    """
    other = tmp_path / "cloud/dit-xl"
    (other / "worker0").mkdir(parents=True)
    (other / "state").write_text("FAILED\n")
    taken = 'echo SUSPENDED > "$CLOUD/cloud/dit/state"; kill -KILL 0'  # the verb goes with the machine
    (tmp_path / "verb").write_text(
        f'echo x >> "$CLOUD/begun"\n[ "$(wc -l < "$CLOUD/begun")" -gt 1 ] || {{ {taken}; }}\n'
    )
    done = tpu_vm("supervise", *VERB, **cloud, NAME="dit", REPOSITORY=origin)
    assert done.returncode == 0, done.stderr
    assert "dit is PROVISIONING" in done.stderr
    assert "the machines are SUSPENDED; restart 1 of 100" in done.stderr
    assert (tmp_path / "begun").read_text() == "x\nx\n"
    calls = (tmp_path / "calls").read_text().split()
    assert (calls.count("create"), calls.count("delete")) == (2, 1)
    assert (other / "state").read_text() == "FAILED\n" and list((other / "worker0").iterdir()) == []


# Worker 2's machine is restarted by the system under its first start, while the others run on.
REBOOT = """
echo x >> ../begun
[ "$(wc -l < ../begun)" -eq 1 ] || exit 0
case "$PWD" in */worker2/*) sleep 0.3; kill -KILL 0 ;; esac
for i in $(seq 400); do sleep 0.05; done
"""


def test_when_one_worker_loses_its_verb_all_are_stopped_and_started(cloud, tmp_path, origin):
    (tmp_path / "verb").write_text(REBOOT)
    done = tpu_vm("supervise", *VERB, **cloud, WORKERS="3", REPOSITORY=origin)
    assert done.returncode == 0, done.stderr
    assert "the verb of a worker is idle; restart 1 of 100" in done.stderr
    begun = [path.read_text() for path in tmp_path.glob("cloud/dit-xl/worker*/begun")]
    assert begun == ["x\nx\n"] * 3


@pytest.mark.parametrize(
    "program, code",
    [
        ('case "$PWD" in */worker1/*) exit 0 ;; esac; sleep 0.5', 0),  # the last one's end counts
        ('case "$PWD" in */worker1/*) exit 2 ;; esac; for i in $(seq 400); do sleep 0.05; done', 2),
        ('case "$PWD" in */worker1/*) exit 134 ;; esac', 134),
    ],
)
def test_a_supervisor_ends_with_the_code_of_the_workers(cloud, tmp_path, origin, program, code):
    """A user's error of one worker ends the others too; its crash, when they have ended."""
    (tmp_path / "verb").write_text(program)
    done = tpu_vm("supervise", *VERB, **cloud, WORKERS="2", MAX_RESTARTS="0", REPOSITORY=origin)
    assert done.returncode == code, done.stderr
