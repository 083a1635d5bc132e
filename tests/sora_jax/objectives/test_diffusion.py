"""Packed = unpacked, no gradient across samples, known tokens stay clean. `test_meshes.py`: sharded = unsharded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import UserError
from data_pipeline.packing import RowLayout, SampleInput, pack_row, stack_rows
from sora_jax.diffusion.denoiser import dit_definition, with_text_features
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.generation import DiffusionConfig
from sora_jax.models.dit import FROZEN_TEXT, Dit, DitConfig
from sora_jax.models.layers import initialise
from sora_jax.models.t5 import forward_flops
from sora_jax.models.t5_files import load_t5
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.objectives.diffusion import (
    batch_flops,
    make_activations,
    make_evaluate,
    make_loss,
    model_config,
    training_flops,
    velocity_errors,
)
from tests.sora_jax.models.published_t5 import describe, tensors, write

LAYOUT = RowLayout(40, 16, 3, (1, 1, 1), 4, 2.0)
MODEL = DitConfig(4, TextEncoderConfig(20, 16, 1, 2, 2), width=24, depth=2, num_heads=2)
CONFIG = DiffusionConfig(MODEL, FlowConfig(reference_tokens=8))
KEY, NAME = jax.random.key(5), "activation_rms/dit/blocks"
SHAPES = ((2, 2, 3), (1, 3, 2), (3, 2, 2))


@pytest.fixture(scope="module")
def params():
    tree = jax.jit(lambda key: {"dit": initialise(lambda rngs: Dit(MODEL, rngs), key)})(jax.random.key(0))
    # The output and the residual branches start at zero, where every test would pass.
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), tree)


def samples() -> list[SampleInput]:
    rng = np.random.default_rng(0)
    return [
        SampleInput(shape, 8.0, 4, list(range(3 + i, 6 + 2 * i)), rng.standard_normal((*shape, 4)).astype(np.float32))
        for i, shape in enumerate(SHAPES)
    ]


def errors(params, members, times, noise):
    batch = {k: jnp.asarray(v) for k, v in stack_rows([pack_row(row, LAYOUT) for row in members]).items()}
    return velocity_errors(CONFIG, params["dit"], batch, times, noise), batch


@pytest.mark.parametrize("kind, dtype", [("int8", "i8["), ("fp8", "f8_e4m3fn[")])
def test_blocks_that_multiply_in_8_bits_have_about_the_same_loss_and_gradients(params, kind, dtype):
    batch = {k: jnp.asarray(v) for k, v in stack_rows([pack_row(samples(), LAYOUT)]).items()}
    noise, times = jax.random.normal(jax.random.key(2), (1, 40, 4)), jnp.asarray([[0.2, 0.5, 0.8]])

    def loss(params, matmul):
        config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, matmul=matmul))
        error, weight = velocity_errors(config, params["dit"], batch, times, noise)
        return jnp.sum(error * weight) / jnp.sum(weight)

    (full, of_full), (value, of_kind) = (
        jax.jit(jax.value_and_grad(functools.partial(loss, matmul=m)))(params) for m in ("full", kind)
    )
    assert 0 < abs(value - full) / full < 0.03
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (of_full, of_kind))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.98
    assert dtype in str(jax.make_jaxpr(functools.partial(loss, matmul=kind))(params))


def test_packed_equals_unpacked_in_loss_and_gradients(params):
    parts = samples()
    noise = jax.random.normal(jax.random.key(2), (1, 40, 4))
    times = jnp.asarray([[0.2, 0.5, 0.8]])

    def packed(params):
        (error, weight), _ = errors(params, [parts], times, noise)
        return jnp.sum(error * weight)

    def unpacked(params):
        total, offset = 0.0, 0
        for i, sample in enumerate(parts):
            count = LAYOUT.num_tokens(sample.shape)
            own = jnp.zeros((1, 40, 4)).at[:, :count].set(noise[:, offset : offset + count])
            (error, weight), _ = errors(params, [[sample]], jnp.tile(times[:, i : i + 1], 3), own)
            total, offset = total + jnp.sum(error * weight), offset + count
        return total

    (a, grad_a), (b, grad_b) = (jax.jit(jax.value_and_grad(f))(params) for f in (packed, unpacked))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grad_b))
    for x, y in zip(jax.tree.leaves(grad_a), jax.tree.leaves(grad_b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * scale)


def test_one_samples_loss_has_no_gradient_in_another(params):
    _, batch = errors(params, [samples()], jnp.full((1, 3), 0.5), jnp.zeros((1, 40, 4)))

    def first_loss(tokens):
        error, _ = velocity_errors(
            CONFIG, params["dit"], {**batch, "tokens": tokens}, jnp.full((1, 3), 0.5), jnp.zeros((1, 40, 4))
        )
        return jnp.sum(error[:, :12])

    gradient = np.asarray(jax.jit(jax.grad(first_loss))(batch["tokens"]))
    assert np.any(gradient[:, :12] != 0) and np.all(gradient[:, 12:] == 0)


def test_known_tokens_are_clean_and_weigh_nothing(params):
    known = np.zeros(SHAPES[0], bool)
    known[0] = True
    sample = dataclasses.replace(samples()[0], known=known)
    (_, weight), batch = errors(params, [[sample]], jnp.full((1, 3), 0.9), jnp.ones((1, 40, 4)))
    assert weight.sum() == 6 and np.all(np.asarray(weight)[0, :6] == 0)

    def prediction(noise):
        return velocity_errors(CONFIG, params["dit"], batch, jnp.full((1, 3), 0.9), noise)[0][:, 6:12].sum()

    gradient = np.asarray(jax.grad(prediction)(jnp.ones((1, 40, 4))))
    assert np.all(gradient[:, :6] == 0)  # the noise of known tokens reaches nothing


def test_noise_depends_on_the_global_row_alone(params):
    _, batch = errors(params, [samples()[:1], samples()[1:]], jnp.full((2, 3), 0.5), jnp.zeros((2, 40, 4)))
    loss, key = jax.jit(make_loss(CONFIG)), jax.random.key(3)
    whole = loss(params, (), batch, key, jnp.int32(0))
    halves = [loss(params, (), {k: v[i : i + 1] for k, v in batch.items()}, key, jnp.int32(i)) for i in range(2)]
    np.testing.assert_allclose(whole.total, halves[0].total + halves[1].total, rtol=1e-5)
    assert whole.weight == halves[0].weight + halves[1].weight


def test_evaluate_reports_buckets_that_average_to_the_loss(params):
    _, batch = errors(params, [samples()], jnp.full((1, 3), 0.5), jnp.zeros((1, 40, 4)))
    sums = jax.jit(make_evaluate(CONFIG))(params, (), batch, jax.random.key(5))
    means = {name: float(total / weight) for name, (total, weight) in sums.items()}
    loss = means.pop("loss")
    np.testing.assert_allclose(loss, np.mean(list(means.values())), rtol=1e-5)


def test_flops_count_real_tokens_only():
    one, two = (stack_rows([pack_row(samples()[:n], LAYOUT)]) for n in (1, 2))
    longer = dataclasses.replace(LAYOUT, row_tokens=80)
    padded = stack_rows([pack_row(samples()[:1], longer)])
    totals = [sum(batch_flops(MODEL, batch).values()) for batch in (one, padded, two)]
    assert totals[0] == totals[1] < totals[2]


def test_a_named_size_can_be_overridden():
    cfg = model_config({"size": "S", "depth": 2, "text": {"width": 32}}, 4, 100)
    assert (cfg.width, cfg.depth, cfg.text.vocab_size, cfg.text.width) == (384, 2, 100, 32)


def test_activations_are_measured_after_each_block_and_without_padding(params):
    _, batch = errors(params, [samples()], jnp.full((1, 3), 0.5), jnp.zeros((1, 40, 4)))

    def measure(activations, depth, batch):
        blocks = jax.tree.map(lambda p: p[:depth], params["dit"]["blocks"])
        return np.asarray(activations({"dit": {**params["dit"], "blocks": blocks}}, (), batch, KEY)[NAME])

    shallow = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, depth=1))
    of_both, of_first = (jax.jit(make_activations(cfg)) for cfg in (CONFIG, shallow))
    both = measure(of_both, 2, batch)
    np.testing.assert_allclose(both[:1], measure(of_first, 1, batch), rtol=1e-5)
    is_padding = (batch["segment_ids"] == 0)[..., None]
    assert is_padding.any() and both[0] != both[1]
    other = {**batch, "tokens": jnp.where(is_padding, 1e3, batch["tokens"])}
    np.testing.assert_allclose(measure(of_both, 2, other), both, rtol=1e-5)


def test_a_frozen_encoders_features_are_the_packed_captions_own_and_it_earns_one_forward_pass(tmp_path):
    """Packed predictions are those of one clip a row; there is no backward pass of the encoder to count."""
    described = describe("umt5", vocab_size=40)
    encoder = load_t5(write(tmp_path, described, tensors(described)), "float32")
    model = dataclasses.replace(MODEL, text=encoder.config)
    frozen = {"text_encoder": encoder.params}
    tree = jax.jit(lambda key: {"dit": initialise(lambda rngs: Dit(model, rngs), key)})(jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), tree)
    network = nnx.merge(dit_definition(model), params["dit"])

    @jax.jit
    def predict(tokens, batch, frozen=frozen):
        times = jnp.full((len(tokens), 6), 0.5)
        return network(tokens, times, with_text_features(model, frozen, batch))

    def rows(members):
        return {k: jnp.asarray(v) for k, v in stack_rows([pack_row(row, LAYOUT) for row in members]).items()}

    together, alone = rows([samples()] * 3), rows([[sample] for sample in samples()])
    packed, unpacked = (np.asarray(predict(batch["tokens"], batch)) for batch in (together, alone))
    start = 0
    for i, shape in enumerate(SHAPES):
        count = LAYOUT.num_tokens(shape)
        np.testing.assert_allclose(packed[0, start : start + count], unpacked[i, :count], rtol=1e-5, atol=1e-5)
        start += count
    other = {**together, "text_ids": together["text_ids"] + 1}
    assert np.abs(predict(together["tokens"], other) - packed).max() > 1e-3, "the text must matter"
    parts = batch_flops(model, {k: np.asarray(v) for k, v in together.items()})
    without = {name: value for name, value in parts.items() if name != FROZEN_TEXT}
    assert training_flops(parts) == pytest.approx(3 * sum(without.values()) + parts[FROZEN_TEXT])
    lengths = [len(sample.text_ids) for sample in samples()] * 3
    assert parts[FROZEN_TEXT] == forward_flops(encoder.config, lengths) > 0
    cached = {**together, "text_features": with_text_features(model, frozen, together)["text_features"]}
    del cached["text_ids"]
    np.testing.assert_allclose(predict(cached["tokens"], cached, ()), packed, rtol=1e-5, atol=1e-6)
    assert FROZEN_TEXT not in batch_flops(model, {k: np.asarray(v) for k, v in cached.items()})


def test_a_trained_and_a_frozen_encoder_exclude_each_other(tmp_path):
    write(tmp_path, describe(), tensors(describe()))
    named = {"text_encoder": {"path": str(tmp_path)}}
    assert model_config({**named, "width": 24, "num_heads": 2}, 4, 100).text.width == 16
    with pytest.raises(UserError, match="both text and text_encoder"):
        model_config({**named, "text": {"width": 32}}, 4, 100)
