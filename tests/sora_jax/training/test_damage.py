"""What checkpoints cost, and what finds their damage: the two measurements, on small runs."""

import json

import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.main import main
from sora_jax.training.damage import KINDS, measure_detection
from sora_jax.training.save_cost import measure_saves
from tests.sora_jax.training.saved_states import biggest_file, save_all


def test_every_sampled_damage_is_found_and_the_run_is_left_alone(tmp_path, capsys):
    save_all(tmp_path / "run", [1], size=8)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main(["bench", "damage", "--run", str(tmp_path / "run"), "--samples", "24"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["detected"], found["restore_refused"]) == (24, 24, 24)
    assert sum(found["kinds"][kind]["tried"] for kind in KINDS) == 24 and found["missed"] == []
    assert all(found["kinds"][kind]["detected"] == found["kinds"][kind]["tried"] > 0 for kind in KINDS)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_that_is_damaged_already_measures_nothing(tmp_path):
    save_all(tmp_path / "run", [1], size=8)
    biggest_file(tmp_path / "run" / "checkpoints" / "1" / "params").unlink()
    with pytest.raises(UserError, match="damaged"):
        measure_detection(tmp_path / "run", tmp_path / "copy", 5)


def test_the_cost_of_saves_adds_up(toy, tmp_path):
    cost = measure_saves(toy.prepare(mesh={"data": 8}), tmp_path, num_steps=8, every=4)
    assert (cost["saves"], cost["flaws"]) == (2, 0)
    assert 0 < cost["stall_share"] < 1
    assert 0 < cost["save_blocks_seconds"] < cost["save_seconds"]
    assert cost["bytes"] > 0 and cost["restore_seconds"] > 0
    assert not list(tmp_path.glob("*/checkpoints/*.*"))
