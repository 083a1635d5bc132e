"""Feature networks from thinned files: norms are folded, means have no padding, files say what is wrong."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import UserError
from sora_jax.commands import main as cli
from sora_jax.models.branches import FoldedUnit, Pool, Unit, Wiring, fold, pool
from sora_jax.models.checkpoint_files import find_checkpoint
from sora_jax.models.feature_files import (
    KINDS,
    FeatureWeights,
    divisor_of,
    expected_shapes,
    fingerprint_of,
    load_weights,
    network_params,
    read_published,
    save_weights,
)
from sora_jax.models.i3d import I3d, I3dConfig
from sora_jax.models.inception import Inception, InceptionConfig
from sora_jax.models.layers import initialise
from tests.sora_jax.models.thin_networks import thin_weights


def test_a_folded_unit_is_the_convolution_and_its_norm():
    rng = np.random.default_rng(0)
    vectors = {part: rng.uniform(0.5, 2, 5).astype(np.float32) for part in ("gamma", "beta", "mean", "variance")}
    weight = rng.standard_normal((5, 3, 1, 1)).astype(np.float32)
    tensors = {"u.weight": weight} | {f"u.{part}": vector for part, vector in vectors.items()}
    folded, x = fold(tensors, "u", 1e-3), rng.standard_normal(3)
    v = vectors
    expected = v["gamma"] * (weight[:, :, 0, 0] @ x - v["mean"]) / np.sqrt(v["variance"] + 1e-3) + v["beta"]
    np.testing.assert_allclose(x @ folded["kernel"][0, 0] + folded["bias"], expected, rtol=1e-5)


def test_a_mean_leaves_the_padding_out():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 5, 2)), jnp.float32)
    found = pool(x, Pool((3, 3), (1, 1), kind="mean"))
    for row in range(4):
        for column in range(5):
            window = x[0, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            np.testing.assert_allclose(found[0, row, column], window.mean((0, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [4, 5])
def test_a_fixed_padding_is_later_by_one_where_the_stride_does_not_divide(length):
    x = jnp.arange(1.0, length + 1).reshape(1, length, 1, 1, 1)
    fixed, same = (pool(x, Pool((3, 1, 1), (2, 1, 1), p, kind="max")).reshape(-1) for p in ("FIXED", "SAME"))
    np.testing.assert_array_equal(fixed, [3, 4] if length == 4 else [3, 5, 5])
    np.testing.assert_array_equal(same, [3, 4] if length == 4 else [2, 4, 5])


@pytest.mark.parametrize(("size", "stride", "frames"), [(3, (1, 1, 1), 5), (7, (2, 2, 2), 9), (3, (2, 1, 2), 10)])
def test_a_unit_over_time_is_the_convolution(size, stride, frames):
    """A CPU takes it frame by frame."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, frames, 6, 7, 3)), jnp.float32)
    unit = FoldedUnit(Wiring("u", Unit((size,) * 3, stride, name="u", width=4), 3), nnx.Rngs(0))
    dims = ("NDHWC", "DHWIO", "NDHWC")
    expected = jax.lax.conv_general_dilated(x, unit.kernel[...], stride, "SAME", dimension_numbers=dims)
    np.testing.assert_allclose(unit(x), jnp.maximum(expected, 0), atol=1e-5)


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_a_pool_takes_whole_windows(kind):
    x = np.random.default_rng(0).standard_normal((1, 5, 6, 7, 2)).astype(np.float32)
    found = pool(jnp.asarray(x), Pool((3, 3, 3), (2, 2, 2), "VALID", kind=kind))
    assert found.shape == (1, 2, 2, 3, 2)
    for t, i, j in np.ndindex(2, 2, 3):
        window = x[0, 2 * t : 2 * t + 3, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_allclose(found[0, t, i, j], getattr(window, kind)((0, 1, 2)), atol=1e-6)


def test_the_published_networks_have_their_published_sizes():
    """23.9 M and 12.7 M parameters, with 2048 features and 400 classes."""
    for network, kind, millions in (("inception", "pytorch-fid", 23.85), ("i3d", "cd-fvd", 12.70)):
        shapes = expected_shapes(network)
        total = sum(np.prod(shape) for name, shape in shapes.items() if not name.endswith(("mean", "variance")))
        assert KINDS[kind].network == network and total / 1e6 == pytest.approx(millions, abs=0.05)
    assert expected_shapes("inception")["head.weight"] == (1008, 2048)
    assert expected_shapes("i3d")["head.weight"] == (400, 1024, 1, 1, 1)


def test_params_of_a_file_are_those_of_the_module():
    for network, make, divisor in (
        ("inception", lambda rngs: Inception(InceptionConfig(16), rngs), 16),
        ("i3d", lambda rngs: I3d(I3dConfig(divisor=8), rngs), 8),
    ):
        weights = thin_weights(network)
        assert divisor_of(weights) == divisor
        module = jax.eval_shape(lambda make=make: initialise(make, jax.random.key(0)))
        found = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), network_params(weights, 1e-3))
        assert found == jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), module)


def test_too_few_frames_are_an_error():
    with pytest.raises(UserError, match="at least 9 frames, got 8"):
        nnx.eval_shape(lambda: I3d(I3dConfig(divisor=8), nnx.Rngs(0))(jnp.zeros((1, 8, 32, 32, 3))))


def test_files_say_what_is_wrong_and_what_to_get(tmp_path):
    weights = thin_weights("inception")
    path = tmp_path / "inception.safetensors"
    with pytest.raises(UserError, match=r"there is no file .* get https://github.com/mseitzer/.*convert-weights"):
        load_weights(path, "inception")
    save_weights(weights, path)
    assert load_weights(path, "inception").fingerprint == fingerprint_of(weights.tensors)
    with pytest.raises(UserError, match=r"holds inception, but i3d is needed: get https://www.dropbox.com"):
        load_weights(path, "i3d")
    save_weights(FeatureWeights("inception", "pytorch-fid", weights.tensors, "0" * 64), path)
    with pytest.raises(UserError, match="is damaged: its tensors have another fingerprint"):
        load_weights(path, "inception")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is no safetensors file of ours"):
        load_weights(path, "inception")
    with pytest.raises(UserError, match="--kind is 'tf'|'tf'"):
        read_published(path, "tf")


def test_a_checkpoint_is_found_by_any_of_its_names_and_needs_tensorflow(tmp_path, monkeypatch):
    for name in ("i3d/model.ckpt.index", "module/variables/variables.index"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    checkpoint = tmp_path / "i3d" / "model.ckpt"
    for path in (checkpoint, checkpoint.with_suffix(".ckpt.index"), tmp_path / "i3d"):
        assert find_checkpoint(path) == checkpoint
    assert find_checkpoint(tmp_path / "module") == tmp_path / "module" / "variables" / "variables"
    with pytest.raises(UserError, match=r"has 0 checkpoints, but must have 1: name a checkpoint such as model.ckpt"):
        find_checkpoint(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"pip install 'sora-jax\[tensorflow\]'"):
        read_published(checkpoint, "kinetics-i3d")


def test_convert_weights_is_a_verb_within_evaluate(tmp_path, capsys):
    missing = tmp_path / "i3d_torchscript.pt"
    words = ["evaluate", "convert-weights", "--kind", "stylegan-v", "--weights", str(missing)]
    assert cli.main([*words, "--out", str(tmp_path / "i3d.safetensors")]) == 2
    assert "for --kind stylegan-v get https://www.dropbox.com" in capsys.readouterr().err
    assert cli.main([*words, "--out", str(tmp_path / "i3d.pt")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert cli.main(["evaluate", "--metric", "probes"]) == 2
    assert "evaluate needs --out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) and json.dumps(sorted(KINDS))
