import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.config import TrainConfig
from sora_jax.training.checkpoint import Checkpoints, Retention, committed_steps
from sora_jax.training.ledger import add_up, read_ledger
from sora_jax.training.loop import train
from sora_jax.training.metrics import read_metrics
from sora_jax.training.spikes import History, Skip, SpikeError, plan_rollback, read_skips, record_skip
from sora_jax.training.step import abstract_state


class Crash(Exception):
    pass


def spiky(toy, bad, crash_at=None, factor=np.nan):
    """Batches of which those that `bad` lists are wrong by `factor`."""

    def batches(start, num_steps):
        for number in range(start, start + num_steps):
            if number == crash_at:
                raise Crash
            batch = toy.batch_at(number)
            yield {**batch, "y": batch["y"] * factor} if number in bad else batch

    return batches


def final_state(run_dir, prepared):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: x.update(sharding=sharding), abstract_state(prepared.task, prepared.train))
    with Checkpoints(run_dir, Retention(2), {}) as checkpoints:
        return checkpoints.restore(checkpoints.latest, abstract)[0]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


SETTINGS = {"num_steps": 40, "eval_every": 0, "keep_last": 99, "rollback_after": 3, "rollback_skip": 12}


def test_a_spike_is_left_behind_and_every_later_start_leaves_out_the_same(toy, one_device, tmp_path):
    bad = (11, 12, 13, 14)  # steps 12 to 15
    with pytest.raises(Crash):  # after the roll-back, before the next checkpoint
        train(toy.prepare(None, spiky(toy, bad, crash_at=22), **SETTINGS), tmp_path / "run", one_device)
    assert read_skips(tmp_path / "run") == [
        Skip(8, 20, 16, "at least 3 of the steps 12 to 14 were not applied"),
    ]
    assert committed_steps(tmp_path / "run" / "checkpoints") == [4, 8]
    assert len(list((tmp_path / "run" / "checkpoints").glob("12.aside.*"))) == 1
    prepared = toy.prepare(None, spiky(toy, bad), **SETTINGS)
    result = train(prepared, tmp_path / "run", one_device)
    assert (result["resumed_from"], result["step"]) == (8, 40)
    state = final_state(tmp_path / "run", prepared)
    assert (state.step, state.skipped) == (40, 12)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if row["kind"] == "spike"] == [12, 13, 14]
    account = add_up(read_ledger(tmp_path / "run"))
    assert account.num_rollbacks == 1 and account.seconds["rolled_back"] > 0

    # A run that was told what to leave out, and never saw the bad batches, ends bitwise the same.
    with pytest.raises(Crash):
        train(toy.prepare(None, spiky(toy, (), crash_at=9), **SETTINGS), tmp_path / "told", one_device)
    record_skip(tmp_path / "told", read_skips(tmp_path / "run")[0])
    train(prepared, tmp_path / "told", one_device)
    assert_same(final_state(tmp_path / "told", prepared), state)

    # So does one that has lost the checkpoint before the spike and comes by it again.
    for step in committed_steps(tmp_path / "run" / "checkpoints")[1:]:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    result = train(prepared, tmp_path / "run", one_device)
    assert (result["resumed_from"], result["step"]) == (4, 40)
    assert_same(final_state(tmp_path / "run", prepared), state)


def test_a_spike_is_not_applied_and_a_resumed_run_finds_the_same_ones(toy, one_device, tmp_path):
    settings = {"num_steps": 56, "eval_every": 0, "checkpoint_every": 20, "spike_sigma": 12.0}
    bad = {"bad": (30, 45), "factor": 30.0}  # the first comes before there are enough steps to judge it by
    whole = toy.prepare(None, spiky(toy, **bad), **settings)
    train(whole, tmp_path / "whole", one_device)
    with pytest.raises(Crash):
        train(toy.prepare(None, spiky(toy, **bad, crash_at=43), **settings), tmp_path / "broken", one_device)
    assert train(whole, tmp_path / "broken", one_device)["resumed_from"] == 40
    states = [final_state(tmp_path / name, whole) for name in ("whole", "broken")]
    assert_same(*states)
    assert states[0].skipped == 1 and states[0].nonfinite_in_a_row == 0
    rows = [[r for r in read_metrics(tmp_path / d) if r["kind"] == "spike"] for d in ("whole", "broken")]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [46]
    assert rows[0][0]["loss"] > rows[0][0]["loss_limit"] > 0


def history(losses, **config):
    made = History(TrainConfig(task="toy", **config), ["a", "b"])
    for step, loss in enumerate(losses, 1):
        made.limits(0)
        metrics = {"skipped": float(not math.isfinite(loss)), "loss": loss, "grad_norm": 1.0}
        made.add(step, {**metrics, "loss/b": 2 * loss, "grad_norm/b": 3.0})
    return made


def test_limits_are_robust_and_do_not_depend_on_what_is_in_flight():
    losses = list(np.random.default_rng(0).normal(5.0, 0.5, 100))
    limits = history(losses, spike_sigma=6.0).limits(2)
    known = np.array(losses[:98])
    deviation = 1.4826 * np.median(abs(known - np.median(known)))
    np.testing.assert_allclose(limits[0], [np.median(known) + 6 * deviation, 1.06], rtol=1e-6)
    np.testing.assert_allclose(limits[1], [2 * limits[0, 0], 3 * 1.06], rtol=1e-6)
    assert (limits == history(losses[:98], spike_sigma=6.0).limits(0)).all()
    outliers = [*losses[:90], *[1e6] * 5, math.nan, *losses[95:]]
    assert history(outliers, spike_sigma=6.0).limits(2)[0, 0] < 1.5 * limits[0, 0]
    assert np.isinf(history(losses[:31], spike_sigma=6.0).limits(0)).all()
    assert history(losses).limits(0) is None
    saved = json.loads(json.dumps(history(outliers, spike_sigma=6.0).to_json()))
    again = History(TrainConfig(task="toy", spike_sigma=6.0), ["a", "b"], saved)
    assert (again.limits(1) == history(outliers, spike_sigma=6.0).limits(1)).all()


def test_as_many_bad_steps_as_told_among_the_last_twice_as_many_call_for_a_rollback():
    bad = math.nan
    assert history([1.0] * 9 + [bad] * 2, rollback_after=3).first_of_spike() is None
    assert history([1.0] * 9 + [bad] * 3, rollback_after=3).first_of_spike() == 10
    assert history([1.0, bad, bad, 1.0, 1.0, 1.0, bad], rollback_after=3).first_of_spike() == 2
    assert history([1.0, bad, bad, 1.0, 1.0, 1.0, 1.0, bad], rollback_after=3).first_of_spike() is None
    assert history([bad] * 9, rollback_after=0).first_of_spike() is None


def test_a_rollback_needs_a_checkpoint_before_the_spike_and_steps_after_it():
    config = TrainConfig(task="toy", num_steps=1000, rollback_skip=200, max_rollbacks=1)
    skip = plan_rollback(config, 511, 520, 2, [300, 500, 515], [])
    assert (skip.after, skip.to, skip.undone) == (500, 700, 522)
    again = dataclasses.replace(config, max_rollbacks=9)
    assert plan_rollback(again, 711, 720, 2, [300, 500], [skip]).after == 300, "500 may have brought the spike along"
    assert plan_rollback(again, 711, 720, 2, [500], [skip]).after == 500, "there is no other"
    assert plan_rollback(config, 511, 900, 2, [500], []).to == 903, "at least all that was undone"
    assert plan_rollback(config, 811, 820, 2, [800], []).to == 999, "the last step is always trained"
    assert plan_rollback(config, 511, 520, 2, [515], []) is None
    assert plan_rollback(config, 990, 999, 2, [500], []) is None
    with pytest.raises(SpikeError, match=r"rolled back 1 times already.*max_rollbacks = 1.*checkpoint 500"):
        plan_rollback(config, 511, 520, 2, [500], [skip])


def test_a_damaged_list_of_skipped_steps_is_named(tmp_path):
    record_skip(tmp_path, Skip(8, 20, 16, "a reason"))
    record_skip(tmp_path, Skip(40, 60, 50, "another"))
    assert [dataclasses.astuple(s)[:3] for s in read_skips(tmp_path)] == [(8, 20, 16), (40, 60, 50)]
    (tmp_path / "skipped.json").write_text("[{")
    with pytest.raises(UserError, match=r"skipped\.json is damaged"):
        read_skips(tmp_path)
