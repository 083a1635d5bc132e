import json
import sys

import pytest

from data_pipeline.errors import UserError
from sora_jax.training.metrics import read_metrics
from sora_jax.training.wandb_log import WandbLog


def test_without_wandb_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed: pip install 'sora-jax\[wandb\]'"):
        WandbLog(tmp_path, "project")


@pytest.mark.wandb
def test_offline_the_rows_are_in_the_run_directory_and_a_second_start_continues(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for num_steps in (4, 8):
        process = toy.launch(tmp_path, num_steps, wandb_project="toy", eval_every=4)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    identity = json.loads((tmp_path / "run.json").read_text())["id"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2, "one part a start, one run"
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "train"]
    for file, row in zip(files, rows, strict=True):
        content = file.read_bytes()
        assert b"train/loss" in content and b"norms/param_norm/net" in content and b"eval/loss" in content
        assert json.dumps(row["loss"]).encode() in content
