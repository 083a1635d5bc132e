"""Every config in `configs/` builds its task, and takes one step in its small variant."""

from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.packing import SampleInput, pack_row, stack_rows
from sora_jax.commands.bench_flops import describe
from sora_jax.commands.train import load_config
from sora_jax.config import OptimConfig, TrainConfig, build_config
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.generation import DiffusionConfig, PreviewConfig
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.discriminator import GanConfig
from sora_jax.models.dit import SIZES, Dit
from sora_jax.models.layers import initialise
from sora_jax.objectives import autoencoder, captioner, diffusion, expander
from sora_jax.objectives.autoencoder import AutoencoderLossConfig
from sora_jax.objectives.captioner import CaptionerLossConfig
from sora_jax.objectives.data_stages import stream_config
from sora_jax.parallel import make_mesh, state_shardings
from sora_jax.training.step import abstract_state, init_state, make_train_step
from sora_jax.types import ParamGroup, Task

TRAINED = ("autoencoder_*.py", "captioner_*.py", "dit_*.py", "expander_*.py")
CONFIGS = sorted(path for what in TRAINED for path in Path(__file__).resolve().parents[1].glob(f"configs/{what}"))


def small(config: dict) -> dict:
    """The same config with a narrow, shallow model."""
    if config["train"]["task"] == "autoencoder":
        stages = [{**stage, "width": 8, "num_blocks": 1} for stage in config["model"]["stages"]]
        return {**config, "model": {**config["model"], "stages": stages}}
    if config["train"]["task"] == "expander":
        return {**config, "model": {**config["model"], "width": 16, "depth": 1, "num_heads": 2}}
    if config["train"]["task"] == "captioner":
        text = dict(text_width=16, text_depth=2, cross_depth=1, text_heads=2, num_memory=4, vector_width=8)
        return {**config, "model": {**config["model"], "width": 24, "depth": 1, "num_heads": 2, **text}}
    model = {name: value for name, value in config["model"].items() if name != "text_encoder"}  # it has its own tests
    text = {"depth": 1, **model.get("text", {}), "width": 16, "num_heads": 2}
    data = {**config["data"], "row_tokens": min(config["data"]["row_tokens"], 512), "row_text": 64}
    return {**config, "data": data, "model": {**model, "width": 32, "depth": 2, "num_heads": 2, "text": text}}


def autoencoder_task(config: dict, optim: OptimConfig) -> tuple[Task, dict[str, np.ndarray]]:
    model = build_config(AutoencoderConfig, config["model"], "config.model")
    for crop in config["data"]["crops"]:
        model.latent_shape(*crop)
    cfg = build_config(AutoencoderLossConfig, config["loss"], "config.loss")
    gan = build_config(GanConfig, config.get("gan", {}), "config.gan")
    task = Task(
        name="autoencoder",
        init=autoencoder.make_init(model, gan),
        groups=autoencoder.make_groups(model, cfg, gan, optim),
        evaluate=autoencoder.make_evaluate(model, cfg),
        flops=lambda batch: 0.0,
    )
    return task, {"video": np.zeros((2, *config["data"]["crops"][0], 3), np.uint8)}


def diffusion_task(config: dict, optim: OptimConfig) -> tuple[Task, dict[str, np.ndarray]]:
    stream = stream_config(config)
    layout = stream.layout(16)
    model = diffusion.model_config(config["model"], layout.patch_values, 300)
    cfg = DiffusionConfig(model, build_config(FlowConfig, config["flow"], "config.flow"))
    build_config(PreviewConfig, config.get("preview", {}), "config.preview")
    task = Task(
        name="diffusion",
        init=lambda key: {"dit": initialise(lambda rngs: Dit(model, rngs), key)},
        groups=(ParamGroup("dit", diffusion.make_loss(cfg), optim),),
        evaluate=diffusion.make_evaluate(cfg),
        flops=lambda batch: 0.0,
    )
    sample = SampleInput((2, 4, 4), 8.0, 4, [3, 4, 2], np.ones((2, 4, 4, 16), np.float32))
    return task, stack_rows([pack_row([sample, sample], layout)] * 2)


def expander_task(config: dict, optim: OptimConfig) -> tuple[Task, dict[str, np.ndarray]]:
    row = expander.pair_config(config).row_tokens
    ids = np.arange(2 * row, dtype=np.int32).reshape(2, row) % 300
    mask = np.ones((2, row), np.float32)
    batch = {"ids": ids, "targets": ids[:, ::-1].copy(), "segment_ids": np.ones_like(ids), "loss_mask": mask}
    return expander.make_task(expander.expander_config(config, 300), optim), batch


def captioner_task(config: dict, optim: OptimConfig) -> tuple[Task, dict[str, np.ndarray]]:
    stream = captioner.stream_config(config)
    model = captioner.model_config(config["model"], 300)
    model.grid(*stream.canvas)
    loss = build_config(CaptionerLossConfig, config["loss"], "config.loss")
    batch = {
        "video": np.zeros((2, 2 * model.patch[0], 2 * model.patch[1], model.patch[2], 3), np.uint8),
        "extents": np.asarray([(1, 9, 8), (3, 8, 8)], np.int32),
        "text_ids": np.ones((2, 8), np.int32),
        "text_lengths": np.asarray([8, 3], np.int32),
        "is_truncated": np.zeros(2, bool),
        "is_unweighted": np.zeros(2, bool),
    }
    return captioner.make_task(model, loss, optim, 2), batch


TASKS = {
    "autoencoder": autoencoder_task,
    "captioner": captioner_task,
    "diffusion": diffusion_task,
    "expander": expander_task,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_small_variant_takes_one_finite_step_on_a_mesh(path):
    config = small(load_config(str(path), []).to_dict())
    train = build_config(TrainConfig, config["train"], "config.train")
    task, batch = TASKS[train.task](config, build_config(OptimConfig, config["optim"], "config.optim"))
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    with jax.set_mesh(mesh):
        shardings = state_shardings(abstract_state(task, train), mesh)
        state = init_state(task, train, shardings)
        state, metrics = make_train_step(task, train, shardings)(state, (), batch)
    assert int(state.step) == 1 and int(state.skipped) == 0
    assert np.isfinite(np.asarray(metrics.values)).all()


def test_a_typo_names_the_nearest_fields(repository):
    with pytest.raises(UserError, match="learning_rate"):
        load_config(str(repository / "configs/dit_quickstart.py"), ["--config.optim.learning_rat=1"])
    with pytest.raises(UserError, match="depth"):
        diffusion.model_config({"dept": 3}, 4, 10)
    with pytest.raises(UserError, match="XL"):
        diffusion.model_config({"size": "XXL"}, 4, 10)


def test_named_sizes_agree_with_the_paper():
    """DiT-S/2 to XL/2 without text: the paper's parameters to 2 % and multiply-adds to 0.3 %."""
    for name in ("S", "B", "L", "XL"):
        row = describe(name, text_tokens=32, vocab_size=8192)
        np.testing.assert_allclose(row["core_parameters_m"], row["paper_parameters_m"], rtol=0.02)
        np.testing.assert_allclose(row["core_multiply_adds_g"], row["paper_multiply_adds_g"], rtol=3e-3)


@pytest.mark.parametrize("name, billions", [("2B", 2), ("7B", 7), ("30B", 30)])
def test_large_sizes_have_the_parameters_that_they_are_named_for(name, billions):
    assert set(SIZES) >= {"S", "B", "L", "XL", name}
    np.testing.assert_allclose(describe(name, 32, 32_000)["parameters_m"], 1000 * billions, rtol=0.05)
