"""Whatever reads a run finds the newest committed step of either tier."""

import json
import shutil

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.training.checkpoint import Checkpoints, Retention, describe_run, find_checkpoint, load_params
from sora_jax.training.interchange import export_run
from sora_jax.training.tiers import open_fast_tier
from sora_jax.training.warm_start import warm_start
from tests.sora_jax.training.saved_states import state_of


@pytest.fixture
def run(tmp_path):
    """A run whose fast tier has the steps 2 and 3, and its directory step 2."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"id": "abc"}))
    (folder / "config.json").write_text(json.dumps({"train": {"fast_dir": str(tmp_path / "fast")}}))
    tier = open_fast_tier(str(tmp_path / "fast"), folder)
    with Checkpoints(folder, Retention(2), describe_run({}, {}), fast_tier=tier, durable_every=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_of(8, step), step, {})
            checkpoints.wait()
    return folder


def test_readers_take_the_newest_step_of_either_tier(run):
    assert [find_checkpoint(run, step).parts[-3] for step in (None, 3, 2)] == ["abc", "abc", "run"]
    assert export_run(run, run.parent / "x.safetensors")["step"] == load_params(run).step == 3
    state, report = warm_start(str(run), state_of(8))
    jax.tree.map(np.testing.assert_array_equal, state.params, state_of(8, 3).params)
    assert report.source == f"{run}@3" and not report.missing


def test_a_step_that_is_nowhere_is_said_to_be_in_neither(run):
    (run / "checkpoints" / "4.saving").mkdir()
    for step, why in ((4, "was never committed"), (9, "does not exist")):
        with pytest.raises(UserError, match=rf"{why}.*; committed in {run} and its fast tier .*/abc/.* are: 2, 3$"):
            find_checkpoint(run, step)
    shutil.rmtree(run.parent / "fast")
    assert find_checkpoint(run).name == "2"
    with pytest.raises(UserError, match=r"its fast tier .*which is not there.* are: 2$"):
        find_checkpoint(run, 3)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"no committed checkpoint yet in .*which is not there"):
        find_checkpoint(run)
