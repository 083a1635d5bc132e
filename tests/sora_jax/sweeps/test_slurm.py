"""A sweep of six tiny runs as a Slurm array on a real cluster: cancelled half-way, submitted again, tabled, plotted."""

import sys
import time

import pytest
from PIL import Image

from sora_jax.sweeps.directory import read_members, read_record
from sora_jax.training.checkpoint import committed_steps

pytestmark = [pytest.mark.slurm, pytest.mark.long]

STEPS = 400


@pytest.fixture
def cluster(slurm_cluster, monkeypatch, repository):
    """The cluster, for programs that are started from here in the repository's root."""
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("SORA_PROGRAM", f"{sys.executable} -m sora_jax.commands.main")
    monkeypatch.chdir(repository)
    return slurm_cluster


def wait_until(condition, say_why, seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, say_why()
        time.sleep(0.1)


def test_an_array_cancelled_half_way_is_finished_by_the_same_command(cluster, tiny_sweep, sweep, tmp_path):
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    file, out = tiny_sweep([{"optim.learning_rate": rate} for rate in rates], num_steps=STEPS), tmp_path / "sweep"
    command = ("run", "--sweep", file, "--out", out, "--engine", "slurm")

    def logs() -> str:
        return "\n".join(p.read_text() for p in sorted([*out.glob("*.log"), *out.glob("*/train.log")]))

    def ended() -> bool:
        return not cluster.run("squeue", "--noheader")

    code, first, _ = sweep(*command)
    assert code == 0 and first["submitted"] == 6
    folders = [out / member.name for member in read_members(out)]

    def half_way() -> bool:
        """Two members are finished, and another has saved something."""
        newest = [(committed_steps(folder / "checkpoints") or [0])[-1] for folder in folders]
        return newest.count(STEPS) >= 2 and any(0 < step < STEPS for step in newest)

    wait_until(half_way, logs)
    cluster.run("scancel", first["job"])
    wait_until(ended, logs)
    _, status, _ = sweep("status", "--out", out)
    done = [row["name"] for row in status["members"] if row["state"] == "finished"]
    assert status["running"] == 0 and status["failed"] == 0 and 2 <= len(done) < 6, logs()
    attempts = {name: len(read_record(out / name).attempts) for name in done}

    code, second, _ = sweep(*command)
    assert code == 0 and second["submitted"] == 6 - len(done)
    wait_until(ended, logs)
    assert {name: len(read_record(out / name).attempts) for name in done} == attempts  # nothing was trained twice
    code, again, _ = sweep(*command)
    assert code == 0 and again == {"would_submit": 0, "command": None}

    _, table, _ = sweep("table", "--out", out, "--file", out / "table.csv")
    assert [row["state"] for row in table["members"]] == ["finished"] * 6, logs()
    losses = [row["held_out_loss"] for row in table["members"]]
    assert losses == sorted(losses) and {row["step"] for row in table["members"]} == {STEPS}
    assert len((out / "table.csv").read_text().splitlines()) == 7
    assert sweep("plot", "--out", out, "--file", out / "sweep.png")[1]["x"] == "optim.learning_rate"
    with Image.open(out / "sweep.png") as picture:
        assert picture.width > 1000
