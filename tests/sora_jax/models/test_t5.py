"""T5's encoders: packed = unpacked, sharded = unsharded, and files that are whole or say what they lack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from data_pipeline.errors import UserError
from sora_jax.models.t5 import buckets, forward_flops, t5_definition
from sora_jax.models.t5_files import find_tokenizer, load_t5, read_t5_config
from sora_jax.parallel import make_mesh, parameter_dims, state_shardings
from tests.sora_jax.models.published_t5 import describe, tensors, write

LENGTHS, ROW = (5, 20, 7), 36


@pytest.fixture(scope="module", params=["t5", "umt5"])
def loaded(request, tmp_path_factory):
    config = describe(request.param)
    return load_t5(write(tmp_path_factory.mktemp(request.param), config, tensors(config)), "float32")


def row(lengths: tuple[int, ...], size: int, offset: int = 0) -> tuple[jax.Array, ...]:
    """ids, segment ids and positions of one row of captions; `offset` moves the ids along one random text."""
    text = np.random.default_rng(3).integers(1, 400, sum(LENGTHS))
    ids, segments, positions = (np.zeros((1, size), np.int32) for _ in range(3))
    total = sum(lengths)
    ids[0, :total] = text[offset : offset + total]
    segments[0, :total] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    positions[0, :total] = np.concatenate([np.arange(n) for n in lengths])
    return jnp.asarray(ids), jnp.asarray(segments), jnp.asarray(positions)


@functools.partial(jax.jit, static_argnums=0)
def encode(config, params, *text):
    return nnx.merge(t5_definition(config), params)(*text)


def test_packed_captions_have_the_features_that_each_has_alone(loaded):
    together = np.asarray(encode(loaded.config, loaded.params, *row(LENGTHS, ROW)))[0]
    start = 0
    for length in LENGTHS:
        alone = np.asarray(encode(loaded.config, loaded.params, *row((length,), ROW, start)))[0]
        np.testing.assert_allclose(together[start : start + length], alone[:length], rtol=1e-5, atol=1e-5)
        start += length
    whole = np.asarray(encode(loaded.config, loaded.params, *row(LENGTHS, sum(LENGTHS))))[0]
    np.testing.assert_allclose(together[:start], whole, rtol=1e-5, atol=1e-5)
    assert np.all(np.isfinite(together)), "padding must not spoil a mean with NaN"


def test_sharded_equals_unsharded(loaded):
    text = [jnp.concatenate([x, x]) for x in row(LENGTHS, ROW)]
    expected = encode(loaded.config, loaded.params, *text)
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    shardings = state_shardings(loaded.params, mesh)
    params = jax.device_put(loaded.params, shardings)
    with jax.set_mesh(mesh):
        sharded = encode(loaded.config, params, *text)
    np.testing.assert_allclose(sharded, expected, rtol=1e-5, atol=1e-5)
    whole = [x for x in jax.tree.leaves(params) if x.ndim > 2 and x.sharding.is_fully_replicated]
    assert [x.shape[-1] for x in whole] in ([], [4]), "only umT5's tables of biases are whole"


def test_every_matrix_is_named_in_the_layout(loaded):
    kernels = [k for k in traverse_util.flatten_dict(loaded.params, sep="/") if k.endswith(("kernel", "embedding"))]
    assert len(kernels) == (8 if loaded.config.is_gated else 7)
    assert all(parameter_dims(name) for name in kernels)


def test_buckets_are_exact_nearby_logarithmic_farther_and_one_beyond():
    by_distance = dict(zip(range(-128, 129), buckets(32, 128).tolist(), strict=True))
    assert [by_distance[-d] for d in range(9)] == list(range(9))
    # 8 * 2^(k/2) tokens away, bucket 8 + k: eight buckets for four doublings
    assert [by_distance[-d] for d in (8, 16, 32, 64, 127, 128)] == [8, 10, 12, 14, 15, 15]
    assert all(by_distance[d] == 16 + by_distance[-d] for d in range(1, 129))


def test_one_file_or_several_are_the_same_encoder_and_a_changed_number_is_another(tmp_path):
    config = describe("umt5")
    values = tensors(config)
    one, several = write(tmp_path / "one", config, values), write(tmp_path / "several", config, values, num_files=3)
    assert load_t5(one).fingerprint == load_t5(several, "float32").fingerprint
    jax.tree.map(np.testing.assert_array_equal, load_t5(one).params, load_t5(several).params)
    values["shared.weight"][7, 3] += 1e-3
    assert load_t5(write(tmp_path / "other", config, values)).fingerprint != load_t5(one).fingerprint


def test_bfloat16_holds_matrices_and_keeps_norms_and_biases_whole(tmp_path):
    config = describe()
    params = load_t5(write(tmp_path, config, tensors(config))).params
    kinds = {name: str(x.dtype) for name, x in traverse_util.flatten_dict(params, sep="/").items()}
    whole = {name for name, kind in kinds.items() if kind == "float32"}
    assert whole == {"relative_bias/table", "norm/scale", "blocks/norm_attention/scale", "blocks/norm_mlp/scale"}
    assert set(kinds.values()) == {"float32", "bfloat16"}


def lose(values):
    del values["encoder.block.1.layer.1.DenseReluDense.wo.weight"]


def add(values):
    values["encoder.block.2.layer.0.layer_norm.weight"] = np.ones(16, np.float32)


def bend(values):
    values["encoder.block.0.layer.0.SelfAttention.o.weight"] = np.ones((24, 16), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose, r"the weights lack encoder\.block\.1\.layer\.1\.DenseReluDense\.wo\.weight"),
        (add, r"the weights hold encoder\.block\.2\.layer\.0\.layer_norm\.weight, which"),
        (bend, r"SelfAttention\.o\.weight has shape \(24, 16\), config\.json says \(16, 24\)"),
    ],
)
def test_tensors_that_are_not_those_of_the_config_are_named(tmp_path, change, message):
    values = tensors(describe())
    change(values)
    with pytest.raises(UserError, match=message):
        load_t5(write(tmp_path, describe(), values))


def test_a_folder_that_is_no_t5_says_what_it_is(tmp_path):
    with pytest.raises(UserError, match="holds no text encoder: config.json cannot be read"):
        load_t5(tmp_path)
    for changes, message in (
        ({"model_type": "bert"}, "of type 'bert', which is none of t5, mt5, umt5"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
        ({"d_kv": None}, "lacks d_kv"),
    ):
        with pytest.raises(UserError, match=message):
            read_t5_config(write(tmp_path / "other", {**describe(), **changes}, tensors(describe())))
    with pytest.raises(UserError, match="dtype is 'int8', which is none of float32, bfloat16"):
        read_t5_config(write(tmp_path / "kind", describe(), tensors(describe())), "int8")


def test_files_that_are_damaged_pickled_or_absent_are_users_errors(tmp_path):
    folder = write(tmp_path / "several", describe(), tensors(describe()), num_files=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="lists 2 files, of which model-00002-of-00002.safetensors are not beside it"):
        load_t5(folder)
    folder = write(tmp_path / "one", describe(), tensors(describe()))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be read"):
        load_t5(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are never read"):
        load_t5(folder)


def test_the_tokenizer_lies_in_the_folder_or_beside_it(tmp_path):
    encoder = tmp_path / "text_encoder"
    encoder.mkdir()
    with pytest.raises(UserError, match=r"put spiece\.model into"):
        find_tokenizer(encoder)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(b"")
    assert find_tokenizer(encoder) == tmp_path / "tokenizer" / "spiece.model"


def test_flops_are_the_matrices_times_tokens_and_attention_within_captions(loaded):
    matrices = [
        x.size for k, x in traverse_util.flatten_dict(loaded.params, sep="/").items() if k.endswith("kernel")
    ]  # both layers
    attention = 4 * 24 * loaded.config.depth
    assert forward_flops(loaded.config, [5, 20]) == 2 * sum(matrices) * 25 + attention * (5**2 + 20**2)
