"""Captions through a frozen T5, packed: each has the features that it has alone, on any mesh, at any length."""

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from sora_jax.models import caption_encoder as module
from sora_jax.models.caption_encoder import caption_encoder
from sora_jax.models.t5 import t5_definition
from sora_jax.models.t5_files import T5Weights, load_t5
from sora_jax.parallel import make_mesh
from tests.sora_jax.models.published_t5 import describe, tensors, write


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> T5Weights:
    described = describe("umt5")
    return load_t5(write(tmp_path_factory.mktemp("umt5"), described, tensors(described)), "float32")


@pytest.fixture(autouse=True)
def short_rows(monkeypatch):
    monkeypatch.setattr(module, "ROW_TOKENS", 16)
    monkeypatch.setattr(module, "ROWS", 4)


def captions(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 400, length).tolist() for length in lengths]


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "context": 2}, {"fsdp": 4, "tensor": 2}])
def test_packed_captions_have_the_features_that_each_has_alone(weights, mesh):
    """More rows than a batch, and one caption longer than a row's usual length."""
    ids = captions(5, 9, 3, 16, 1, 40, 7, 7, 2, 30, 12, 1, 1, 16, 8)
    found = list(caption_encoder(weights, mesh and make_mesh(mesh))(ids))
    alone = jax.jit(nnx.merge(t5_definition(weights.config), weights.params).__call__)
    assert len(found) == len(ids)
    for features, one in zip(found, ids, strict=True):
        row, is_caption = np.zeros((1, 40), np.int32), np.arange(40)[None] < len(one)
        row[0, : len(one)] = one
        expected = np.asarray(alone(row, is_caption.astype(np.int32), np.arange(40)[None]))
        assert features.dtype == ml_dtypes.bfloat16 and features.shape == (len(one), weights.config.width)
        np.testing.assert_allclose(features.astype(np.float32), expected[0, : len(one)], rtol=1e-2, atol=1e-2)


def test_no_captions_have_no_features(weights):
    assert list(caption_encoder(weights, None)([])) == []


def test_few_shapes_are_compiled_whatever_the_lengths(weights):
    encode, before = caption_encoder(weights, None), module._features._cache_size()
    for longest in (17, 20, 25, 31, 32):
        assert len(list(encode(captions(3, longest)))) == 2
    assert module._features._cache_size() - before <= 1
