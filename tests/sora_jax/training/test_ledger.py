import json
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from sora_jax.commands.main import main
from sora_jax.training.checkpoint import committed_steps
from sora_jax.training.ledger import END, FINISHED, KINDS, Ledger, add_up, process_started, read_ledger
from sora_jax.training.loop import train

ASIDES = ("compilation", "save", "evaluation", "preview", "stop")


@st.composite
def histories(draw):
    """Marks of a run that is started over and over, and what they must add up to, simulated second by second."""
    now, committed, marks = 0.0, 0, []
    truth = dict.fromkeys(KINDS, 0.0)
    productive = []  # (step, seconds), one entry a step

    def mark(kind, step, waited, **facts):
        marks.append({"time": now, "kind": kind, "step": step, "waited_s": waited, **facts})

    for number in range(draw(st.integers(1, 5))):
        if number:
            gap = draw(st.integers(0, 9))
            truth["down"] += gap
            now += gap
        step, waited = committed, 0.0

        for kind in ("start", "restore"):
            mark(kind, 0 if kind == "start" else step, waited)
            seconds = draw(st.integers(0, 5))
            truth[kind] += seconds
            now += seconds
        truth["repeated"] += sum(s for n, s in productive if n > step)
        productive = [(n, s) for n, s in productive if n <= step]
        mark("train", step, waited)
        for _ in range(draw(st.integers(0, 12))):
            event = draw(st.sampled_from(("step", "step", "wait", *ASIDES)))
            seconds = draw(st.integers(0, 5))
            if event in ("step", "wait"):
                step, waited = step + 1, waited + (1.0 if event == "wait" else 0.0)
                now += seconds + (1.0 if event == "wait" else 0.0)
                truth["input_wait"] += event == "wait"
                productive.append((step, seconds))
                mark("train", step, waited)
            else:
                mark(event, step, waited)
                truth[event] += seconds
                now += seconds
                committed = step if event == "save" else committed
                mark("train", step, waited)
        if draw(st.booleans()):
            mark(END, step, waited, status="preempted")
    truth["productive"] = sum(s for _, s in productive)
    return marks, truth


@settings(max_examples=60, deadline=None)
@given(histories())
def test_every_second_of_any_history_is_found_where_it_went(history):
    marks, truth = history
    account = add_up(marks)
    assert account.seconds == pytest.approx(truth)
    assert sum(account.seconds.values()) == pytest.approx(account.wall_s) == marks[-1]["time"] - marks[0]["time"]


def test_the_time_after_a_finish_is_nobodys_and_a_rollback_has_a_kind_of_its_own():
    rows = [
        (0, "start", 0, {}), (2, "restore", 0, {}), (3, "train", 0, {}), (13, "train", 10, {}),
        (13, "restore", 5, {"rollback": True}), (14, "train", 12, {}), (20, "train", 18, {}),
        (20, END, 18, {"status": FINISHED}),
        (1000, "start", 0, {}), (1001, "restore", 18, {}), (1002, "train", 18, {}), (1003, "train", 19, {}),
    ]  # fmt: skip
    account = add_up([{"time": t, "kind": k, "step": s, "waited_s": 0.0, **more} for t, k, s, more in rows])
    expected = {"start": 3, "restore": 3, "rolled_back": 5, "productive": 5 + 6 + 1}
    assert {k: v for k, v in account.seconds.items() if v} == expected
    assert (account.idle_s, account.wall_s, account.steps_repeated, account.num_rollbacks) == (980, 23, 0, 1)


def test_a_torn_line_is_left_out_and_the_next_process_goes_on(tmp_path):
    with Ledger(tmp_path, time.time()) as ledger:
        ledger.restore(0)
        ledger.train_from(0)
        ledger.beat(3, 0.0)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"time": 17')  # the disk was full
    with pytest.raises(ZeroDivisionError), Ledger(tmp_path, time.time()) as ledger:
        ledger.restore(0)
        raise ZeroDivisionError
    marks = read_ledger(tmp_path)
    assert [m["kind"] for m in marks] == ["start", "restore", "train", "start", "restore", "end"]
    assert marks[-1]["status"] == "ZeroDivisionError"
    with pytest.raises(UserError, match="no ledger"):
        read_ledger(tmp_path / "other")


def test_this_process_was_started_before_now():
    assert time.time() - 3600 * 24 < process_started() < time.time()


def test_a_run_killed_twice_accounts_for_its_wall_time(toy, tmp_path, capsys):
    begun, run_dir, latest = time.time(), tmp_path / "run", 0
    for _ in range(2):
        process = toy.launch(run_dir, 40, step_seconds=0.03)
        deadline = time.monotonic() + 60
        while committed_steps(run_dir / "checkpoints")[-1:] in ([], [latest]) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        latest = committed_steps(run_dir / "checkpoints")[-1]
    process = toy.launch(run_dir, 40, step_seconds=0.03)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    wall_s = time.time() - begun
    assert main(["goodput", "--run", str(run_dir)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(result["seconds"].values()) == pytest.approx(result["wall_seconds"], rel=0.01)
    assert result["wall_seconds"] < wall_s
    assert (result["num_starts"], result["step"]) == (3, 40)
    assert all(seconds >= 0 for seconds in result["seconds"].values())
    happened = ("productive", "input_wait", "compilation", "save", "start", "restore", "stop", "down")
    assert all(result["seconds"][kind] > 0 for kind in happened)


def test_a_run_in_this_process_is_all_there(toy, one_device, tmp_path):
    begun = time.time()
    train(toy.prepare(), tmp_path, one_device)
    wall_s = time.time() - begun
    account = add_up(read_ledger(tmp_path))
    assert sum(account.seconds.values()) == pytest.approx(account.wall_s, abs=0.01)
    assert 0 < account.wall_s < wall_s
    assert (account.steps, account.num_starts, account.steps_repeated) == (12, 1, 0)
    train(toy.prepare(), tmp_path, one_device)  # finished: nothing more is written
    assert add_up(read_ledger(tmp_path)).num_starts == 1
