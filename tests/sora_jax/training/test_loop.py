import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.training.checkpoint import Checkpoints, Retention, committed_steps, load_params
from sora_jax.training.loop import NotFiniteError, train
from sora_jax.training.metrics import read_metrics
from sora_jax.training.step import abstract_state


class Crash(Exception):
    pass


def crash_at(toy, step):
    """Batches that end in an exception instead of batch `step`."""

    def batches(start, num_steps):
        for number in range(start, start + num_steps):
            if number == step:
                raise Crash
            yield toy.batch_at(number)

    return batches


def final_state(run_dir, toy, **settings):
    """All arrays of a run's newest checkpoint, on one device."""
    prepared = toy.prepare(**settings)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: x.update(sharding=sharding), abstract_state(prepared.task, prepared.train))
    with Checkpoints(run_dir, Retention(2), {}) as checkpoints:
        return checkpoints.restore(checkpoints.latest, abstract)[0]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_trains_evaluates_and_says_what_made_it(toy, one_device, tmp_path):
    result = train(toy.prepare(num_steps=60, eval_every=20, checkpoint_every=30), tmp_path, one_device)
    assert (result["status"], result["step"], result["resumed_from"]) == ("finished", 60, 0)
    assert "exit_code" not in result
    evals = [row["loss"] for row in read_metrics(tmp_path) if row["kind"] == "eval"]
    assert len(evals) == 3 and evals[-1] < evals[0]
    assert [row["step"] for row in read_metrics(tmp_path) if row["kind"] == "train"] == list(range(4, 61, 4))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 60
    assert json.loads((tmp_path / "run.json").read_text())["fingerprints"] == {"data": "toy"}
    assert any((tmp_path / "tensorboard").iterdir())
    again = train(toy.prepare(num_steps=60, eval_every=20, checkpoint_every=30), tmp_path, one_device)
    assert (again["status"], again["step"], again["resumed_from"]) == ("finished", 60, 60)
    assert again["eval"] == result["eval"]


@pytest.mark.parametrize(("optimizer", "moment"), [("adamw", "float32"), ("adamw", "bfloat16"), ("muon", "float32")])
def test_resume_equals_uninterrupted(toy, one_device, tmp_path, optimizer, moment):
    optim = {"optimizer": optimizer, "moment_dtype": moment}
    logged = {"log_every": 3}  # a checkpoint every 4 steps cuts the rows in two
    train(toy.prepare(optim, **logged), tmp_path / "whole", one_device)
    for crash in (3, 7, 11):  # before the first checkpoint, after it, and just before the end
        with pytest.raises(Crash):
            train(toy.prepare(optim, crash_at(toy, crash), **logged), tmp_path / "broken", one_device)
    result = train(toy.prepare(optim, **logged), tmp_path / "broken", one_device)
    assert result["resumed_from"] == 8
    assert_same(final_state(tmp_path / "broken", toy, optim=optim), final_state(tmp_path / "whole", toy, optim=optim))
    names = ("step", "kind", "loss", "grad_norm", "learning_rate", "noise")
    rows = [[{n: row.get(n) for n in names} for row in read_metrics(tmp_path / d)] for d in ("broken", "whole")]
    assert rows[0] == rows[1]


def test_the_best_by_a_metric_that_is_not_measured_is_refused_before_anything_is_written(toy, tmp_path):
    with pytest.raises(UserError, match="keep_best is 'psnr:max', but the held-out evaluation measures loss$"):
        train(toy.prepare(keep_best="psnr:max"), tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="nothing is evaluated: eval_every is 0 and eval_batches"):
        toy.prepare(keep_best="loss", eval_every=0)


def test_resume_on_another_mesh_continues_the_same_run(toy, one_device, tmp_path):
    train(toy.prepare(), tmp_path / "one", one_device)
    with pytest.raises(Crash):
        train(toy.prepare(None, crash_at(toy, 6)), tmp_path / "moved", one_device)
    result = train(toy.prepare(), tmp_path / "moved")  # on all eight
    assert result["resumed_from"] == 4
    losses = [[r["loss"] for r in read_metrics(tmp_path / d) if r["kind"] == "train"] for d in ("one", "moved")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def wait_for_checkpoint(run_dir: Path, process: subprocess.Popen, after: int = 0) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if committed_steps(run_dir / "checkpoints")[-1:] > [after]:
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no checkpoint after step {after}: {process.communicate()[1]}")


def test_killed_at_random_moments_the_run_ends_bitwise_the_same(toy, tmp_path):
    num_steps, moments = 60, random.Random(0)
    whole = toy.launch(tmp_path / "whole", num_steps)
    latest = 0
    for _ in range(5):
        process = toy.launch(tmp_path / "killed", num_steps, step_seconds=0.02)
        wait_for_checkpoint(tmp_path / "killed", process, after=latest)
        time.sleep(moments.uniform(0, 0.2))  # in a step, in a save, between the two
        process.kill()
        process.communicate()
        latest = committed_steps(tmp_path / "killed" / "checkpoints")[-1]
    last = toy.launch(tmp_path / "killed", num_steps)
    for process in (whole, last):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert result["resumed_from"] == latest and result["step"] == num_steps
    states = [final_state(tmp_path / name, toy) for name in ("killed", "whole")]
    assert_same(*states)
    assert states[0].step == num_steps
    steps = [row["step"] for row in read_metrics(tmp_path / "killed") if row["kind"] == "train"]
    assert steps == list(range(4, num_steps + 1, 4))
    assert not list((tmp_path / "killed" / "checkpoints").glob("*tmp*"))


def test_sigterm_saves_and_exits_with_its_own_code(toy, tmp_path):
    process = toy.launch(tmp_path / "run", 1000, step_seconds=0.02)
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # a forwarding shell sends it twice
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    result = json.loads(output.splitlines()[-1])
    assert (result["status"], result["exit_code"]) == ("preempted", 75)
    assert committed_steps(tmp_path / "run" / "checkpoints")[-1] == result["step"] < 1000


def test_a_signal_that_also_ends_the_loader_still_saves(toy, one_device, tmp_path):
    def batches(start, num_steps):
        yield from toy.make_batches(start, 6)
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("a worker was terminated")

    result = train(toy.prepare(None, batches), tmp_path, one_device)
    assert (result["status"], result["step"]) == ("preempted", 6)
    assert committed_steps(tmp_path / "checkpoints")[-1] == 6


def test_ctrl_c_saves_and_a_second_one_stops_at_once(toy, one_device, tmp_path):
    def interrupted(*steps):
        def batches(start, num_steps):
            for step in range(start, start + num_steps):
                if step in steps:
                    os.kill(os.getpid(), signal.SIGINT)
                yield toy.batch_at(step)

        return batches

    result = train(toy.prepare(None, interrupted(6)), tmp_path, one_device)
    assert (result["status"], result["exit_code"]) == ("preempted", 75)
    assert committed_steps(tmp_path / "checkpoints")[-1] == result["step"] in (7, 8)

    def twice(start, num_steps):
        yield from toy.make_batches(start, 1)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one is a KeyboardInterrupt")

    with pytest.raises(KeyboardInterrupt):
        train(toy.prepare(None, twice), tmp_path, one_device)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(toy.prepare(), tmp_path, one_device)["status"] == "finished"


def test_steps_that_stay_not_finite_stop_the_run_and_name_the_last_good_checkpoint(toy, one_device, tmp_path):
    def batches(start, num_steps):
        for step in range(start, start + num_steps):
            batch = toy.batch_at(step)
            yield batch if step < 6 else {**batch, "x": batch["x"] * np.nan}

    prepared = toy.prepare(None, batches, num_steps=40, max_nonfinite_steps=5, checkpoint_every=2, keep_last=9)
    with pytest.raises(NotFiniteError, match=r"\d steps in a row \(7 to 1\d\).*checkpoints/6;"):
        train(prepared, tmp_path, one_device)
    assert np.isfinite(load_params(tmp_path).params["net"]["head"]["kernel"]).all()


def test_a_run_directory_refuses_another_config_but_may_run_longer(toy, one_device, tmp_path):
    train(toy.prepare(), tmp_path, one_device)
    with pytest.raises(UserError, match=r"config\.optim\.learning_rate was 0\.01 and is 0\.02"):
        train(toy.prepare({"learning_rate": 0.02}), tmp_path, one_device)
    with pytest.raises(UserError, match="data was toy and is other"):
        train(toy.prepare(fingerprints={"data": "other"}), tmp_path, one_device)
    result = train(toy.prepare(num_steps=16, log_every=2), tmp_path, one_device)
    assert (result["resumed_from"], result["step"]) == (12, 16)


def test_init_from_takes_parameters_by_path_and_reports_the_rest(toy, one_device, tmp_path):
    train(toy.prepare(), tmp_path / "first", one_device)
    plain = toy.prepare(num_steps=1, init_from=f"{tmp_path / 'first'}@8", eval_every=0)

    def init(key):
        params = toy.init(key)
        params["net"]["blocks"]["gain"] = params["net"]["blocks"]["bias"] + 1
        params["net"]["head"] = {"kernel": params["net"]["head"]["kernel"][:, :1]}
        del params["net"]["blocks"]["bias"]
        return params

    def loss(params, frozen, batch, key, row_offset):
        net = params["net"]
        blocks = {"kernel": net["blocks"]["kernel"], "bias": net["blocks"]["gain"]}
        return toy.loss({"net": {**net, "blocks": blocks}}, frozen, batch, key, row_offset)

    group = plain.task.groups[0].__class__("net", loss, plain.task.groups[0].optim)
    task = plain.task.__class__(**{**vars(plain.task), "init": init, "groups": (group,)})
    with pytest.raises(UserError, match="does not exist"):
        train(plain._replace(train=toy.prepare(init_from=f"{tmp_path / 'first'}@5").train), tmp_path / "x", one_device)
    assert not (tmp_path / "x").exists(), "found out before anything was made"
    train(plain._replace(task=task), tmp_path / "second", one_device)
    report = json.loads((tmp_path / "second" / "init_from.json").read_text())
    assert report["loaded"] == ["net/blocks/kernel"]
    assert report["missing"] == ["net/blocks/gain"]
    assert report["unexpected"] == ["net/blocks/bias"]
    assert report["other_shape"] == ["net/head/kernel: (8, 2), (8, 1)"]
    source, started = load_params(tmp_path / "first", 8), load_params(tmp_path / "second", 1)
    moved = np.abs(source.params["net"]["blocks"]["kernel"] - started.params["net"]["blocks"]["kernel"]).max()
    assert moved < 0.01  # one warm-up step of Adam away, not a fresh draw


def test_rows_that_no_mesh_can_split_are_an_early_error(toy, tmp_path):
    with pytest.raises(UserError, match="batch_rows=12"):
        train(toy.prepare(batch_rows=12), tmp_path)


def test_previews_are_drawn_from_the_average(toy, one_device, tmp_path):
    seen = []

    def preview(params, frozen, folder, step):
        path = folder / f"{step:06d}.txt"
        path.write_text("a grid")
        seen.append((step, float(np.abs(params["net"]["head"]["kernel"]).sum())))
        return [path]

    prepared = toy.prepare(preview_every=8)
    task = prepared.task.__class__(**{**vars(prepared.task), "preview": preview})
    train(prepared._replace(task=task), tmp_path, one_device)
    assert [step for step, _ in seen] == [8, 12]
    assert (tmp_path / "previews" / "000012.txt").exists()
    average = load_params(tmp_path).params["net"]["head"]["kernel"]
    np.testing.assert_allclose(seen[-1][1], np.abs(average).sum(), rtol=1e-6)
