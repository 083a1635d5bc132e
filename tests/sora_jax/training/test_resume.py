"""Where a run starts: two tiers, a tier that is lost, a damaged step, `--from_step`."""

import shutil

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.training.checkpoint import Checkpoints, Retention, committed_steps
from sora_jax.training.inventory import list_checkpoints, verify_run
from sora_jax.training.manifest import verify
from sora_jax.training.resume import choose_start, open_together, read_starts, record_start
from sora_jax.training.step_folders import set_aside
from sora_jax.training.tiers import fast_tier, known_steps, open_fast_tier
from tests.sora_jax.training.saved_states import (
    abstract_of,
    biggest_file,
    make_run_with_fast_tier,
    save_all,
    save_in_two_tiers,
    state_of,
)

DESCRIPTION = {"code": "1", "environment": {"command": "x"}}


@pytest.fixture
def run(tmp_path):
    return make_run_with_fast_tier(tmp_path)


def restore(run, step):
    tier = open_fast_tier(str(run.parent / "fast"), run)
    with Checkpoints(run, Retention(2), {}, fast_tier=tier) as checkpoints:
        return checkpoints.restore(step, abstract_of(state_of(8)))[0]


def test_the_fast_tier_gets_every_save_and_the_run_one_of_some(run):
    fast = str(run.parent / "fast")
    save_in_two_tiers(run, range(1, 9), durable_every=3)
    assert committed_steps(fast_tier(fast, run)) == [7, 8]
    assert committed_steps(run / "checkpoints") == [3, 6]
    assert known_steps(run, fast) == [3, 6, 7, 8]
    save_in_two_tiers(run, [9, 10], durable_every=3, last=[10])  # another process: the rhythm is the same
    assert committed_steps(run / "checkpoints") == [9, 10]
    assert {(e.step, e.tier) for e in list_checkpoints(run)} == {(9, "fast"), (10, "fast"), (9, "run"), (10, "run")}
    assert len(verify_run(run)["good"]) == 4
    jax.tree.map(np.testing.assert_array_equal, restore(run, 10), state_of(8, 10))


def test_a_lost_fast_tier_costs_the_steps_since_the_last_copy(run):
    fast = str(run.parent / "fast")
    save_in_two_tiers(run, range(1, 6), durable_every=2)
    assert choose_start(run, fast) == 5
    shutil.rmtree(fast)
    assert choose_start(run, fast) == 4
    jax.tree.map(np.testing.assert_array_equal, restore(run, 4), state_of(8, 4))
    save_in_two_tiers(run, [5, 6], durable_every=2)
    assert known_steps(run, fast) == [4, 5, 6]


def test_a_damaged_copy_is_replaced_by_the_other_tiers(run, caplog):
    save_in_two_tiers(run, [1, 2], durable_every=1)
    biggest_file(fast_tier(str(run.parent / "fast"), run) / "2" / "params").write_bytes(b"")
    assert restore(run, 2).step == 2
    assert "its copy" in caplog.text and "is good" in caplog.text
    biggest_file(run / "checkpoints" / "2" / "params").write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoints/2 is damaged: it has a file params/.* of 0 bytes, but .*step 1;"):
        restore(run, 2)


def test_a_save_to_the_last_ends_in_both_tiers_even_if_it_is_committed_already(run):
    save_in_two_tiers(run, [1, 2, 2], durable_every=100, last=[2])
    assert committed_steps(run / "checkpoints") == [2]


def test_a_damaged_from_step_is_refused_before_a_newer_one_is_set_aside(tmp_path):
    folder = tmp_path / "checkpoints"
    save_all(tmp_path, [1, 2], size=8)
    biggest_file(folder / "1" / "params").write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoints/1 is damaged: .* but the later step 2 is: start without --from"):
        choose_start(tmp_path, from_step=1)
    assert committed_steps(folder) == [1, 2] and choose_start(tmp_path) == 2
    set_aside(folder, 1)
    with pytest.raises(UserError, match=r"no other is good but .*/2\.aside\.\d+, .* rename it to 2 to go on"):
        verify(folder / "1")


def test_from_step_sets_the_newer_steps_aside_once(tmp_path, caplog):
    save_all(tmp_path, [1, 2, 3], size=8)
    with pytest.raises(UserError, match=r"--from_step 7 .* never committed; committed are: 1, 2, 3"):
        choose_start(tmp_path, from_step=7)
    assert choose_start(tmp_path, from_step=3) == 3
    assert choose_start(tmp_path, from_step=1) == 1
    record_start(tmp_path, 1, 1, DESCRIPTION)
    assert [e.status for e in list_checkpoints(tmp_path)] == ["committed", "set aside", "set aside"]
    save_all(tmp_path, [2], size=8)
    assert choose_start(tmp_path, from_step=1) == 2, "a launcher repeats its command"
    assert "went on from step 1 before" in caplog.text
    biggest_file(tmp_path / "checkpoints" / "2" / "params").unlink()
    assert choose_start(tmp_path, from_step=1) == 1, "but a damaged step is a new reason"
    assert [row["from_step"] for row in read_starts(tmp_path)] == [1]


def test_a_fast_tier_that_the_config_forgets_is_not_passed_over_silently(run):
    save_in_two_tiers(run, range(1, 6), durable_every=2)
    with pytest.raises(UserError, match=r"step of .*, 5, is in its fast tier .*is '' now.*--from_step 4"):
        open_together(run, {**DESCRIPTION, "config": {}, "fingerprints": {}}, "", None)


def test_steps_that_are_not_committed_are_not_started_from(tmp_path):
    assert choose_start(tmp_path) == 0
    save_all(tmp_path, [1], size=8)
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.saving")
    assert choose_start(tmp_path) == 1
