"""Whatever reads a run finds the newest committed step of either tier."""

import shutil

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.training.checkpoint import find_checkpoint, load_params
from sora_jax.training.interchange import export_run
from sora_jax.training.warm_start import warm_start
from tests.sora_jax.training.saved_states import biggest_file, make_run_with_fast_tier, save_in_two_tiers, state_of


@pytest.fixture
def run(tmp_path):
    """A run whose fast tier has the steps 2 and 3, and its directory step 2."""
    folder = make_run_with_fast_tier(tmp_path)
    save_in_two_tiers(folder, (1, 2, 3), durable_every=2)
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


def test_readers_take_the_good_copy_of_a_step_of_which_one_is_damaged(run, caplog):
    biggest_file(run / "checkpoints" / "2" / "ema").write_bytes(b"")
    assert find_checkpoint(run, 2).parts[-3] == "run"
    assert load_params(run, 2).step == export_run(run, run.parent / "x.safetensors", 2)["step"] == 2
    assert f"the checkpoint {run}/checkpoints/2 is damaged: it has a file" in caplog.text
    fast = run.parent / "fast" / "abc" / "checkpoints"
    biggest_file(fast / "3" / "ema").write_bytes(b"")  # the only copy of step 3
    with pytest.raises(UserError, match=rf"{fast}/3 is damaged: .*step 2; .* --workdir {run} --from_step 2"):
        load_params(run)
