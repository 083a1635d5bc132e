"""A follower scores each checkpoint once, survives one that goes away, and its rows come back after a resume."""

import json
import shutil

import pytest

from sora_jax.evaluation.follow import Pace, add_rows, last_step, new_checkpoints, score_if_there, write_result
from sora_jax.training.checkpoint import CHECKPOINTS, committed_steps
from sora_jax.training.metrics import METRICS, read_metrics


def test_a_run_is_followed_to_its_end(tmp_path, random_run_folder):
    run, folder = random_run_folder, tmp_path / "scores"
    for step in (9, 11):
        shutil.copytree(run / CHECKPOINTS / "7", run / CHECKPOINTS / str(step))
    assert committed_steps(run / CHECKPOINTS) == [7, 9, 11]
    (run / "config.json").write_text(json.dumps({"train": {"num_steps": 11}}))
    (run / METRICS).write_text('{"step": 11, "kind": "train", "loss": 1.0}\n')
    seen, left_out = [], set()

    def score(step: int) -> dict:
        seen.append(step)
        if step == 9:  # retention is faster than the reader
            shutil.rmtree(run / CHECKPOINTS / "9")
            raise FileNotFoundError("gone")
        return {"metric": "synth-fd", "synth-fd": float(step)}

    def is_done(step: int) -> bool:
        return step in left_out or (folder / f"{step}.json").exists()

    for step in new_checkpoints(run, is_done, Pace(0.01, 5), last_step(run)):
        result = score_if_there(run, step, score)
        if result is None:
            left_out.add(step)
        else:
            write_result(folder, step, result)
            add_rows(run, folder)
    assert seen == [7, 9, 11] and left_out == {9}
    rows = [row for row in read_metrics(run) if row["kind"] == "score"]
    assert [(row["step"], row["synth-fd"]) for row in rows] == [(7, 7.0), (11, 11.0)]
    assert list(new_checkpoints(run, is_done, Pace(0.01, 5), 11)) == [] and add_rows(run, folder) == 0
    (run / METRICS).write_text("")
    assert add_rows(run, folder) == 2
    with pytest.raises(ValueError, match="ours"):  # a failure of a checkpoint that is there is no retention's

        def fail(step: int) -> dict:
            raise ValueError("ours")

        score_if_there(run, 11, fail)


@pytest.fixture
def random_run_folder(tmp_path):
    """A run folder with one committed step; what is in it nobody reads here."""
    (tmp_path / "run" / CHECKPOINTS / "7").mkdir(parents=True)
    return tmp_path / "run"
