"""LPIPS: equation 1 of the paper, its gradient, the sizes that it takes, and the published files that it loads."""

import shutil

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.models.lpips import BACKBONES, MIN_SIDE, SCALE, SHIFT, features, lpips, weight_shapes
from sora_jax.models.lpips_weights import CAFFE_MEAN, load_lpips

jitted, jitted_features = jax.jit(lpips, static_argnums=0), jax.jit(features, static_argnums=0)


def random_weights(net: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Kernels that keep the activations' size, and heads of both small and large weights, none negative."""
    rng = np.random.default_rng(seed)
    shapes = weight_shapes(net)
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    scale = {name: np.sqrt(2 / np.prod(shape[:-1])) if len(shape) == 4 else 0.1 for name, shape in shapes.items()}
    return {n: np.abs(x) if n.startswith("head") else x * np.float32(scale[n]) for n, x in drawn.items()}


def pictures(num: int, height: int, width: int, seed: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (num, height, width, 3), minval=-1.0)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_the_distance_is_equation_1(net):
    weights, x, y = random_weights(net), pictures(2, 34, 31, 1), pictures(2, 34, 31, 2)
    expected = np.zeros(2)
    for number, (f, g) in enumerate(
        zip(jitted_features(net, weights, x), jitted_features(net, weights, y), strict=True)
    ):
        f, g = (np.asarray(a, np.float64) for a in (f, g))
        head, (_, height, width, _) = weights[f"head_{number}"].astype(np.float64), f.shape
        for n in range(2):
            for row in range(height):
                for column in range(width):
                    a, b = f[n, row, column], g[n, row, column]
                    unit = a / (np.linalg.norm(a) + 1e-10) - b / (np.linalg.norm(b) + 1e-10)
                    expected[n] += np.sum(head * unit**2) / (height * width)
    distance = jitted(net, weights, x, y)
    np.testing.assert_allclose(distance, expected, rtol=1e-4)
    np.testing.assert_allclose(jitted(net, weights, y, x), distance, rtol=1e-5)
    np.testing.assert_allclose(jitted(net, weights, x, x), 0, atol=1e-12)


def test_the_gradient_is_finite_where_no_feature_answers():
    """A bias below all answers: every activation is zero, and the length of the features has no derivative there."""
    weights = random_weights("alex")
    weights["features.0.bias"] = np.full_like(weights["features.0.bias"], -100.0)
    x, y = pictures(1, 32, 32, 1), pictures(1, 32, 32, 2)
    gradient = jax.jit(jax.grad(lambda a, w: lpips("alex", w, a, y).sum()))
    assert np.all(np.isfinite(gradient(x, weights)))
    assert np.any(np.asarray(gradient(x, random_weights("alex"))) != 0)


@pytest.mark.parametrize("net", sorted(BACKBONES))
def test_the_smallest_picture_is_as_small_as_it_says(net):
    weights, side = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in weight_shapes(net).items()}, MIN_SIDE[net]
    shapes = [jax.ShapeDtypeStruct((1, n, 40, 3), jnp.float32) for n in (side, side - 1)]
    found = jax.eval_shape(lambda w, x: features(net, w, x), weights, shapes[0])
    assert all(min(x.shape) > 0 for x in found)
    if net == "alex":  # the other pools would take a smaller one, and give nothing
        assert min(found[-1].shape[1:3]) == 1
    with pytest.raises(UserError, match=f"needs {side} pixels a side, got 40x{side - 1}"):
        jax.eval_shape(lambda w, x: features(net, w, x), weights, shapes[1])


def test_published_files_are_loaded(shared_data):
    loaded = load_lpips("squeeze", shared_data / "weights")
    x = jnp.broadcast_to(jnp.linspace(-0.8, 0.8, 64)[None, :, None, None], (1, 64, 64, 3))
    noise = jax.random.normal(jax.random.key(0), x.shape)
    distances = [float(jitted("squeeze", loaded.weights, x, x + s * noise)[0]) for s in (0.0, 0.02, 0.1, 0.4)]
    assert distances[0] < 1e-12 and distances == sorted(distances) and distances[-1] > 0.1
    assert load_lpips("squeeze", shared_data / "weights").fingerprint == loaded.fingerprint


def test_kerass_first_convolution_takes_lpipss_colours(shared_data):
    """As published: blue, green, red of 0..255 minus Caffe's means; here: LPIPS's scaled red, green, blue."""
    loaded = load_lpips("squeeze", shared_data / "weights")
    path = next((shared_data / "weights").glob("squeezenet1.1_*.h5"))
    with h5py.File(path) as file:
        group = file["conv1"]["conv1_3"]
        kernel, bias = np.asarray(group["kernel:0"]), np.asarray(group["bias:0"])
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 9, 9, 3))
    caffe = (pixels - np.asarray(CAFFE_MEAN))[..., ::-1]
    scaled = (pixels / 127.5 - 1 - np.asarray(SHIFT)) / np.asarray(SCALE)

    def convolve(x, kernel, bias):
        rows = [np.tensordot(x[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel, 3) for i in range(4) for j in range(4)]
        return np.stack(rows) + bias

    expected = convolve(caffe, kernel, bias)
    ours = convolve(scaled, loaded.weights["features.0.kernel"], loaded.weights["features.0.bias"])
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_wrong_files_say_what_was_expected(shared_data, tmp_path):
    published = shared_data / "weights"
    with pytest.raises(UserError, match="the LPIPS backbone is 'resnet'"):
        load_lpips("resnet", published)
    with pytest.raises(UserError, match=r"holds no alexnet-\*\.pth .* torchvision"):
        load_lpips("alex", published)
    shutil.copy(published / "lpips_v0.1_vgg_heads.pth", tmp_path / "lpips_v0.1_squeeze_heads.pth")
    shutil.copy(next(published.glob("*.h5")), tmp_path)
    with pytest.raises(UserError, match="SHA-256 a78928a.*expected 4a5350f"):
        load_lpips("squeeze", tmp_path)
    (tmp_path / "lpips_v0.1_squeeze_heads.pth").rename(tmp_path / "lpips_my_squeeze_heads.pth")
    with pytest.raises(UserError, match=r"head_1 is missing|head_2 is of shape|head_3 is of shape \(512,\)"):
        load_lpips("squeeze", tmp_path)
    (tmp_path / "squeezenet1_1-0123abcd.pth").write_bytes(b"not the published file")
    with pytest.raises(UserError, match=r"squeezenet1_1-0123abcd\.pth has SHA-256 .* expected 0123abcd"):
        load_lpips("squeeze", tmp_path)
