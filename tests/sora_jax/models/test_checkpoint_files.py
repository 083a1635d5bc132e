"""I3D from checkpoints that TensorFlow wrote, beside the same layout run by TensorFlow's own operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import UserError
from sora_jax.models.checkpoint_files import find_checkpoint
from sora_jax.models.feature_files import load_weights, network_params, read_published, save_weights
from sora_jax.models.i3d import I3d, I3dConfig
from sora_jax.models.layers import definition

pytestmark = [
    pytest.mark.tensorflow,
    # TensorFlow and Keras warn about Python's and NumPy's releases
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

DIVISOR = 8
BLOCKS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
"""Written from the published source, apart from the table of `sora_jax/models/i3d.py`."""


class DeepMind:
    """`InceptionI3d` of kinetics-i3d, with its variables drawn where they are first needed."""

    def __init__(self, tf, scope: str):
        self.tf, self.scope, self.variables = tf, scope, {}
        self.rng = np.random.default_rng(0)

    def variable(self, name: str, shape: tuple[int, ...], around: float, spread: float) -> np.ndarray:
        drawn = around + spread * np.abs(self.rng.standard_normal(shape)) * self.rng.choice([-1, 1], shape)
        return self.variables.setdefault(f"{self.scope}{name}", drawn.astype(np.float32))

    def unit(self, x, name: str, width: int, size: int = 1, stride: int = 1):
        width_in = int(x.shape[-1])
        kernel = self.variable(f"{name}/conv_3d/w", (size,) * 3 + (width_in, width), 0, (2 / size**3 / width_in) ** 0.5)
        x = self.tf.nn.conv3d(x, kernel, (1, stride, stride, stride, 1), "SAME")
        vectors = {"beta": (0, 0.1), "moving_mean": (0, 0.1), "moving_variance": (1, 0.2)}
        beta, mean, variance = (
            self.variable(f"{name}/batch_norm/{part}", (1, 1, 1, 1, width), *how) for part, how in vectors.items()
        )
        variance = np.abs(variance, out=variance)
        return self.tf.nn.relu(self.tf.nn.batch_normalization(x, mean, variance, beta, None, 1e-3))

    def mixed(self, x, block: str):
        w = [width // DIVISOR for width in BLOCKS[block]]
        name = f"Mixed_{block}"
        last = "Conv3d_0a_3x3" if block == "5b" else "Conv3d_0b_3x3"
        branches = [self.unit(x, f"{name}/Branch_0/Conv3d_0a_1x1", w[0])]
        inner = self.unit(x, f"{name}/Branch_1/Conv3d_0a_1x1", w[1])
        branches.append(self.unit(inner, f"{name}/Branch_1/Conv3d_0b_3x3", w[2], 3))
        inner = self.unit(x, f"{name}/Branch_2/Conv3d_0a_1x1", w[3])
        branches.append(self.unit(inner, f"{name}/Branch_2/{last}", w[4], 3))
        inner = self.pool(x, (3, 3, 3), (1, 1, 1))
        branches.append(self.unit(inner, f"{name}/Branch_3/Conv3d_0b_1x1", w[5]))
        return self.tf.concat(branches, 4)

    def pool(self, x, size: tuple[int, ...], stride: tuple[int, ...]):
        return self.tf.nn.max_pool3d(x, (1, *size, 1), (1, *stride, 1), "SAME")

    def __call__(self, x) -> np.ndarray:
        x = self.unit(x, "Conv3d_1a_7x7", 64 // DIVISOR, 7, 2)
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        x = self.unit(x, "Conv3d_2b_1x1", 64 // DIVISOR)
        x = self.unit(x, "Conv3d_2c_3x3", 192 // DIVISOR, 3)
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        for block in BLOCKS:
            if block == "4b":
                x = self.pool(x, (3, 3, 3), (2, 2, 2))
            if block == "5b":
                x = self.pool(x, (2, 2, 2), (2, 2, 2))
            x = self.mixed(x, block)
        x = self.tf.nn.avg_pool3d(x, (1, 2, *x.shape[2:4], 1), (1,) * 5, "VALID")
        head, width = "Logits/Conv3d_0c_1x1/conv_3d", int(x.shape[-1])
        x = self.tf.nn.conv3d(x, self.variable(f"{head}/w", (1, 1, 1, width, 400), 0, 0.1), (1,) * 5, "SAME")
        x = x + self.variable(f"{head}/b", (400,), 0, 0.1)
        return self.tf.reduce_mean(self.tf.squeeze(x, (2, 3)), 1).numpy()


def save(tf, variables: dict[str, np.ndarray], prefix) -> None:
    """By the operation that TensorFlow 1's Saver runs."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = list(variables)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(variables[name]) for name in names],
    )


@pytest.fixture(scope="module")
def published():
    """TensorFlow, a network, a clip and its logits."""
    tf = pytest.importorskip("tensorflow")
    network = DeepMind(tf, "RGB/inception_i3d/")
    clip = np.random.default_rng(1).uniform(-1, 1, (2, 10, 64, 64, 3)).astype(np.float32)
    return tf, network.variables, clip, network(clip)


@pytest.mark.parametrize(
    ("kind", "saved", "named", "before"),
    [
        ("kinetics-i3d", "rgb_imagenet/model.ckpt", "rgb_imagenet/model.ckpt", ""),
        ("kinetics-i3d", "rgb_imagenet/model.ckpt", "rgb_imagenet", ""),
        ("tfhub-i3d", "module/variables/variables", "module", "module/"),
    ],
)
def test_features_equal_those_of_tensorflow(published, tmp_path, kind, saved, named, before):
    tf, variables, clip, expected = published
    others = {"global_step": np.int64(3), "Flow/inception_i3d/Conv3d_1a_7x7/conv_3d/w": np.zeros((7, 7, 7, 2, 8))}
    save(tf, {f"{before}{name}": value for name, value in variables.items()} | others, tmp_path / saved)
    weights = read_published(tmp_path / named, kind, DIVISOR)
    save_weights(weights, tmp_path / "i3d.safetensors")
    loaded = load_weights(tmp_path / "i3d.safetensors", "i3d")
    assert loaded.kind == kind and np.all(loaded.tensors["Mixed_3b.b0.gamma"] == 1)
    graph = definition(lambda rngs: I3d(I3dConfig(divisor=DIVISOR), rngs))
    found = jax.jit(lambda p, x: nnx.merge(graph, p)(x))(network_params(loaded, 1e-3), jnp.asarray(clip))
    assert expected.std() > 0.01 and np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_damaged_and_foreign_checkpoints_are_clear_errors(published, tmp_path):
    tf, variables, _, _ = published
    with pytest.raises(UserError, match=r"no file .*; for --kind tfhub-i3d get https://tfhub.dev"):
        read_published(tmp_path / "nowhere", "tfhub-i3d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has 0 checkpoints, but must have 1: name a checkpoint such as model.ckpt"):
        read_published(tmp_path / "empty", "tfhub-i3d")
    quirk = "RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w"
    save(tf, {n: v for n, v in variables.items() if n != quirk}, tmp_path / "lacking" / "model.ckpt")
    with pytest.raises(UserError, match=r"Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w is missing, expected \(16, 4, 3"):
        read_published(tmp_path / "lacking", "kinetics-i3d", DIVISOR)
    with pytest.raises(UserError, match=r"Conv3d_1a_7x7/conv_3d/w is of shape \(8, 3, 7, 7, 7\), expected \(64, 3, 7"):
        read_published(tmp_path / "lacking", "kinetics-i3d")
    save(tf, {"dense/w": np.zeros(3, np.float32)}, tmp_path / "foreign" / "model.ckpt")
    with pytest.raises(UserError, match=r"holds 0 tensors that end in Conv3d_1a_7x7/conv_3d/w.*has 1 \(dense/w"):
        read_published(tmp_path / "foreign", "kinetics-i3d")
    data = next((tmp_path / "lacking").glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cannot be read .*; download all of its files again"):
        read_published(tmp_path / "lacking", "kinetics-i3d", DIVISOR)
    index = tmp_path / "lacking" / "model.ckpt.index"
    index.write_bytes(index.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        read_published(tmp_path / "lacking", "kinetics-i3d", DIVISOR)
    data.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_published(tmp_path / "lacking", "kinetics-i3d", DIVISOR)
    save(tf, {"x": np.zeros(1, np.float32)}, tmp_path / "lacking" / "second.ckpt")
    with pytest.raises(UserError, match=r"has 2 checkpoints \(model.ckpt, second.ckpt\)"):
        find_checkpoint(tmp_path / "lacking")
