"""A run of several stages: resumed anywhere as if it had never stopped, refused when it cannot be."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.objectives.data_stages import data_stages, flow_config, one_stage, stream_config
from sora_jax.objectives.diffusion import prepare
from sora_jax.training.checkpoint import load_params
from sora_jax.training.loop import train
from sora_jax.training.metrics import read_metrics
from tests.data_pipeline.conftest import write_latents
from tests.data_pipeline.test_stages import share_tokenizer
from tests.sora_jax.training.diffusion_run import CONFIG, TRAIN, write_data

BOUNDARY, STEPS = 3, 6


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """From step 3 on rows of twice the tokens, fewer of them, another mixture and another shift."""
    root = tmp_path_factory.mktemp("staged")
    first = write_data(root / "first")
    fingerprint = prepare({**CONFIG, "data": {**CONFIG["data"], "path": str(first)}, "train": TRAIN}).task.fingerprints
    second = write_latents(root / "second", 30, 4, seed=1, fingerprint=fingerprint["autoencoder"])
    share_tokenizer(first, second)
    mixture = ({"path": str(first), "weight": 1.0}, {"path": str(second), "weight": 1.0})
    later = {"start": BOUNDARY, "row_tokens": 640, "batch_rows": 4, "mixture": mixture, "reference_tokens": 512}
    data = {**CONFIG["data"], "path": str(first), "window_steps": 2, "stages": ({"start": 0}, later)}
    settings = {"num_steps": STEPS, "eval_every": BOUNDARY, "checkpoint_every": 1, "keep_last": STEPS}
    model = {**CONFIG["model"], "depth": 1}
    return {**CONFIG, "model": model, "data": data, "train": {**TRAIN, **settings}}


def with_train(config, **fields):
    return {**config, "train": {**config["train"], **fields}}


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    result = train(prepare(config), run, jax.devices()[:1])
    return run, result


def test_the_run_goes_through_its_stages_and_evaluates_on_the_one_it_is_in(config, whole):
    run, result = whole
    assert result["status"] == "finished"
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    assert len(rows) == STEPS and all(np.isfinite(row["loss"]) for row in rows)
    shapes = [batch["tokens"].shape[:2] for batch in prepare(config).make_batches(0, STEPS)]
    assert shapes == [(8, 320)] * BOUNDARY + [(4, 640)] * (STEPS - BOUNDARY)
    held_out = [next(iter(prepare(config).eval_batches(step)))["tokens"].shape[:2] for step in (0, BOUNDARY, STEPS)]
    assert held_out == [(8, 320), (8, 320), (4, 640)]  # after three steps it is still the first stage's


@pytest.mark.parametrize("stopped", [BOUNDARY - 1, BOUNDARY, BOUNDARY + 1])
def test_a_resume_around_the_boundary_ends_bitwise_as_the_whole_run(config, whole, tmp_path, stopped):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    result = train(prepare(config), run, jax.devices()[:1], from_step=stopped)
    assert result["resumed_from"] == stopped and result["step"] == STEPS
    jax.tree.map(np.testing.assert_array_equal, load_params(run).params, load_params(whole[0]).params)
    rows = [[row for row in read_metrics(d) if row["step"] > stopped] for d in (run, whole[0])]
    resumed, uninterrupted = ({(row["kind"], row["step"]): row.get("loss") for row in part} for part in rows)
    assert resumed == uninterrupted and len(resumed) >= STEPS - stopped


def test_stages_take_what_they_name_and_leave_the_rest(config):
    first, later = data_stages(config)
    assert (first.stream.row_tokens, first.stream.batch_rows, first.reference_tokens) == (320, 8, 64)
    assert (later.stream.row_tokens, later.stream.batch_rows, later.reference_tokens) == (640, 4, 512)
    assert [len(stage.members) for stage in (first, later)] == [1, 2]
    assert dataclasses.replace(later.stream, row_tokens=320, batch_rows=8) == first.stream
    assert stream_config(config).row_tokens == 640 and flow_config(config).reference_tokens == 512  # of the last
    plain = one_stage(config, 0)
    assert "stages" not in plain["data"] and plain["train"]["batch_rows"] == 8 and stream_config(plain) == first.stream
    assert one_stage(one_stage(config)) == one_stage(config)
    with pytest.raises(UserError, match="stage 2 is asked for"):
        one_stage(config, 2)
    for stages in (5, (0, {"row_tokens": 640})):
        with pytest.raises(UserError, match="config.data.stages must be a tuple of dict"):
            data_stages({**config, "data": {**config["data"], "stages": stages}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": (1, 2, 2)}, r"stages\[1\] sets patch_size, which is the same in all stages"),
        ({"row_token": 3}, r"stages\[1\] has no field 'row_token'; did you mean row_tokens"),
        ({"start": 0}, "each later than the last"),
        ({"row_tokens": 0}, "row_tokens is 0"),
        ({"mixture": ({"path": "x", "wait": 1},)}, r"mixture\[0\] has no field 'wait'"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_before_a_model_is_built(config, change, message):
    first, later = config["data"]["stages"]
    data = {**config["data"], "stages": (first, {**later, **change})}
    with pytest.raises(UserError, match=message):
        prepare({**config, "data": data})


def test_rows_of_any_stage_that_do_not_divide_over_the_mesh_are_refused(config, tmp_path):
    prepared = prepare(with_train(config, mesh={"data": 8}))
    with pytest.raises(UserError, match="batch_rows=4 does not divide into 1 microbatches over 8 devices"):
        train(prepared, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_best_of_several_stages_is_not_kept(config, tmp_path):
    with pytest.raises(UserError, match="keep_best is 'loss:min', but config.data.stages has 2, and"):
        train(prepare(with_train(config, keep_best="loss:min")), tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()
