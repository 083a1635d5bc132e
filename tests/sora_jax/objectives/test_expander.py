"""The expander: what its loss counts, and that a tiny one learns to say what it was told."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from sora_jax.config import OptimConfig, TrainConfig
from sora_jax.models.text_decoder import TextDecoderConfig
from sora_jax.objectives.expander import ROWS, ExpanderConfig, decoder_definition, expand, expander_config, make_task
from sora_jax.parallel import make_mesh, state_shardings
from sora_jax.training.checkpoint import Checkpoints, Retention, describe_run
from sora_jax.training.step import TrainState, abstract_state, init_state, make_train_step
from sora_jax.training.trained_expander import TrainedExpander

COLOURS, SHAPES = ("red", "blue", "green"), ("circle", "square")
PAIRS = [(f"a {c} {s}", f"A picture of a {c} {s} on a dark background.") for c in COLOURS for s in SHAPES]
TOKENIZER = Tokenizer.train([text for pair in PAIRS for text in pair] * 3, 400)
CFG = ExpanderConfig(TextDecoderConfig(TOKENIZER.vocab_size, 48, 1, 2), short_tokens=6, long_tokens=16)


def rows(pairs):
    """A batch of these pairs, as `PairSource` lays them out."""
    end, length = TOKENIZER.eos_id, 2 + CFG.short_tokens + CFG.long_tokens
    batch = {name: np.zeros((len(pairs), length), np.int32) for name in ("ids", "targets", "segment_ids")}
    batch["loss_mask"] = np.zeros((len(pairs), length), np.float32)
    for i, (short, long) in enumerate(pairs):
        before = [end, *TOKENIZER.encode(short)]
        text = [*before, end, *TOKENIZER.encode(long), end]
        count = len(text) - 1
        batch["ids"][i, :count], batch["targets"][i, :count], batch["segment_ids"][i, :count] = text[:-1], text[1:], 1
        batch["loss_mask"][i, len(before) : count] = 1
    return batch


@pytest.fixture(scope="module")
def trained():
    """A task and its parameters after 60 steps on all pairs."""
    train = TrainConfig(task="expander", batch_rows=len(PAIRS))
    task = make_task(CFG, OptimConfig(learning_rate=5e-3, warmup_steps=5, schedule="constant"))
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        shardings = state_shardings(abstract_state(task, train), mesh)
        state, step, losses = init_state(task, train, shardings), make_train_step(task, train, shardings), []
        for _ in range(60):
            state, metrics = step(state, (), rows(PAIRS))
            losses.append(metrics)
    return task, jax.device_get(state.params)


def test_a_short_prompt_becomes_the_long_one_that_it_was_trained_with(trained, caplog):
    _, params = trained
    short, long = zip(*PAIRS, strict=True)
    many = list(short) * (1 + ROWS // len(short))
    assert expand(CFG, params["expander"], TOKENIZER, many) == list(long) * (1 + ROWS // len(short))
    assert expand(CFG, params["expander"], TOKENIZER, [short[4]]) == [long[4]]
    assert not caplog.records
    unfit = ["", "a red circle and a blue square and a green square"]
    assert expand(CFG, params["expander"], TOKENIZER, unfit) == unfit
    assert "1 of 2 prompts stay as they are, such as 'a red circle and" in caplog.text


def test_the_loss_is_the_cross_entropy_of_the_long_text_and_its_end(trained):
    task, params = trained
    batch = jax.tree.map(jnp.asarray, rows(PAIRS[:2]))
    network = nnx.merge(decoder_definition(CFG), params["expander"])
    probabilities = jax.nn.log_softmax(network(batch["ids"], batch["segment_ids"]))
    wanted, count = 0.0, 0
    for i, (short, long) in enumerate(PAIRS[:2]):
        first, ids = 1 + len(TOKENIZER.encode(short)), [*TOKENIZER.encode(long), TOKENIZER.eos_id]
        wanted -= sum(float(probabilities[i, first + n, token]) for n, token in enumerate(ids))
        count += len(ids)
    total, weight = jax.jit(task.evaluate)(params, (), batch, jax.random.key(0))["loss"]
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    assert weight == count


def test_a_wrong_config_is_said():
    config = {"data": {"path": "x", "short_tokens": 4}, "train": {"batch_rows": 2}, "model": {"width": 64, "dept": 2}}
    with pytest.raises(UserError, match="config.model has no field 'dept'; did you mean depth"):
        expander_config(config, 100)
    with pytest.raises(UserError, match="config.model.dtype is 'float8'"):
        expander_config({**config, "model": {"dtype": "float8"}}, 100)


def test_a_run_is_read_back_with_its_tokenizer(trained, tmp_path):
    _, params = trained
    (tmp_path / "data").mkdir()
    TOKENIZER.save(tmp_path / "data/tokenizer.model")
    data = {"path": str(tmp_path / "data"), "short_tokens": CFG.short_tokens, "long_tokens": CFG.long_tokens}
    model = {"width": CFG.decoder.width, "depth": CFG.decoder.depth, "num_heads": CFG.decoder.num_heads}
    config = {"data": data, "model": model, "optim": {}, "train": {"task": "expander", "batch_rows": 2}}
    described = describe_run(config, {"data": "d", "tokenizer": TOKENIZER.fingerprint})
    state = TrainState(jnp.int32(1), params, params, {}, jnp.int32(0), jnp.int32(0))
    with Checkpoints(tmp_path / "run", Retention(1), described) as checkpoints:
        checkpoints.save(state, 1, {})
    found = TrainedExpander.from_run(tmp_path / "run")
    assert found.config == CFG and found.expand([PAIRS[2][0]]) == [PAIRS[2][1]]
    other = jax.tree.map(lambda p: p * 2, params["expander"])
    assert replace(found, params=other).fingerprint != found.fingerprint
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = TrainedExpander.from_run(tmp_path / "run", tokenizer=tmp_path / "moved/tokenizer.model")
    assert moved.fingerprint == found.fingerprint
    Tokenizer.train(["something else"]).save(tmp_path / "moved/tokenizer.model")
    with pytest.raises(UserError, match="is tokenizer .*, but .*run was trained with"):
        TrainedExpander.from_run(tmp_path / "run", tokenizer=tmp_path / "moved/tokenizer.model")
