"""The captioner's losses: what they are by hand, on a mesh, in microbatches; and a run that learns and goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.config import OptimConfig, TrainConfig
from sora_jax.models.captioner import CaptionerConfig, Coca, apply
from sora_jax.objectives import captioner
from sora_jax.objectives.captioner import CaptionerLossConfig, contrastive, make_loss, make_task, read, same_captions
from sora_jax.parallel import make_mesh, put_batch, state_shardings
from sora_jax.training.step import abstract_state, init_state, make_train_step

MODEL = CaptionerConfig(
    vocab_size=19, patch=(2, 4, 4), stem=(6,), width=24, depth=1, num_heads=2, num_memory=3, text_width=16,
    text_depth=2, cross_depth=1, text_heads=2, vector_width=8,
)  # fmt: skip
END = 2
LOSS = CaptionerLossConfig()


@pytest.fixture(scope="module")
def params():
    return jax.jit(make_task(MODEL, LOSS, OptimConfig(), END).init)(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lengths = np.asarray([6, 3, 6, 4], np.int32)
    ids = rng.integers(3, 19, (4, 6)).astype(np.int32)
    ids[2] = ids[0]
    return {
        "video": rng.integers(0, 256, (4, 2, 8, 8, 3), np.uint8),
        "extents": np.asarray([(2, 8, 8), (1, 8, 8), (2, 8, 4), (2, 8, 8)], np.int32),
        "text_ids": np.where(np.arange(6) < lengths[:, None], ids, 0).astype(np.int32),
        "text_lengths": lengths,
        "is_truncated": np.asarray([False, True, False, False]),
        "is_unweighted": np.zeros(4, bool),
    }


def test_the_loss_is_the_captions_entropy_and_the_contrast(params, batch):
    out = jax.jit(make_loss(MODEL, LOSS, END))(params, {}, batch, jax.random.key(0), jnp.int32(0))
    found = jax.jit(lambda params, batch: read(apply(MODEL, params["captioner"]), batch, END))(params, batch)
    log_p = np.asarray(jax.nn.log_softmax(found.logits))
    places = [(row, i) for row in range(4) for i in range(batch["text_lengths"][row])]
    entropy = -sum(log_p[row, i, batch["text_ids"][row, i]] for row, i in places)
    logits = np.asarray(found.clips) @ np.asarray(found.captions).T / 0.07
    logits[0, 2] = logits[2, 0] = -np.inf  # the same caption
    both = [logits - np.log(np.exp(logits).sum(axis, keepdims=True)) for axis in (0, 1)]
    contrast = -0.5 * sum(np.diagonal(x) for x in both).mean()
    assert float(out.weight) == len(places) == 19
    np.testing.assert_allclose(out.total, 2 * entropy + 19 * contrast, rtol=1e-4)
    np.testing.assert_allclose(out.metrics["caption_loss"][0], entropy, rtol=1e-4)
    assert [float(x) for x in out.metrics["captions_truncated"]] == [1, 4]


def test_only_equal_captions_are_the_same():
    ids = jnp.asarray([[5, 6, 0], [5, 6, 0], [6, 5, 0], [5, 6, 1], [0, 5, 6]])
    assert np.array_equal(same_captions(ids), np.eye(5, dtype=bool) | (np.arange(5) < 2)[:, None] & (np.arange(5) < 2))


def test_the_nearest_caption_is_its_own_when_the_vectors_agree():
    vectors = jnp.eye(3)
    of_rows, nearest = contrastive(
        jnp.float32(20.0), Coca(jnp.zeros((3, 1, 1)), vectors, vectors), jnp.eye(3, dtype=bool)
    )
    assert nearest.all() and float(of_rows.max()) < 1e-6
    turned = Coca(jnp.zeros((3, 1, 1)), vectors, jnp.roll(vectors, 1, axis=0))
    of_rows, nearest = contrastive(jnp.float32(20.0), turned, jnp.eye(3, dtype=bool))
    assert not nearest.any() and float(of_rows.min()) > 10


def test_a_mesh_gives_the_loss_and_gradient_of_one_device(params, batch):
    loss = make_loss(MODEL, LOSS, END)
    gradient = jax.value_and_grad(lambda p, b: loss(p, {}, b, jax.random.key(0), jnp.int32(0)).total)
    alone, of_alone = jax.jit(gradient)(params, batch)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(params, mesh))
        spread, of_spread = jax.jit(gradient)(placed, put_batch(batch, mesh))
    np.testing.assert_allclose(alone, spread, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), of_alone, jax.device_get(of_spread))


def test_a_fresh_state_is_not_compiled_for_twice(batch):
    """A weakly typed parameter would be another program after the first step."""
    task, train = make_task(MODEL, LOSS, OptimConfig(), END), TrainConfig("captioner", num_steps=2, microbatches=2)
    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        shardings = state_shardings(abstract_state(task, train), mesh)
        state, step = init_state(task, train, shardings), make_train_step(task, train, shardings)
        for _ in range(2):
            state, metrics = step(state, (), put_batch(batch, mesh))
    assert step._cache_size() == 1 and np.isfinite(np.asarray(metrics.values)).all()
    assert {"caption_loss", "token_accuracy", "contrastive_loss", "temperature"} <= set(metrics.names)


def test_the_stream_takes_the_runs_batch_and_seed():
    first, second = (
        {"caption_weights": {"synthetic short": 1}},
        {"start": 5, "caption_weights": {"synthetic long": 1.0}},
    )
    data = {"path": "x", "canvas": [9, 32, 32], "stages": [first, second]}  # as a config reads back from JSON
    config = {"data": data, "train": {"batch_rows": 7, "seed": 3}}
    stream = captioner.stream_config(config)
    assert (stream.batch_size, stream.seed, stream.canvas) == (7, 3, (9, 32, 32))
    weights = stream.weights_of_stages()
    assert [dict(weights[stream.stage_at(step)]) for step in (4, 5)] == [
        {"synthetic short": 1.0},
        {"synthetic long": 1.0},
    ]
    with pytest.raises(UserError, match=r"data.stages\[0\] must be a mapping with start, caption_weights, not \[0, \{"):
        captioner.stream_config({**config, "data": {**data, "stages": [[0, {"synthetic short": 1}]]}})
