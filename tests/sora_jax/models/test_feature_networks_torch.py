"""Inception-v3, I3D and VideoMAE equal PyTorch modules of the published layouts, from every format that is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import UserError
from sora_jax.models.feature_files import load_weights, network_params, read_published, save_weights
from sora_jax.models.i3d import I3d, I3dConfig
from sora_jax.models.inception import Inception, InceptionConfig
from sora_jax.models.layers import definition
from sora_jax.models.videomae import BASE, GIANT, VideoMae, VideoMaeConfig, config_of, videomae_shapes

pytestmark = [
    pytest.mark.torch,
    # PyTorch 2.13 warns that TorchScript, which published files are of, is past its time
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning"),
]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def ours(make, params, x: np.ndarray):
    graph = definition(make)
    return jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, jnp.asarray(x))


def through_file(path, kind: str, tmp_path, divisor: int):
    """Read, converted, saved and loaded."""
    weights = read_published(path, kind, divisor)
    save_weights(weights, tmp_path / "converted.safetensors")
    loaded = load_weights(tmp_path / "converted.safetensors", weights.network)
    assert loaded.fingerprint == weights.fingerprint and loaded.kind == kind
    return loaded


@pytest.mark.parametrize(("kind", "divisor", "side"), [("pytorch-fid", 1, 299), ("pytorch-fid", 16, 107)])
def test_inception_of_a_state_dict(kind, divisor, side, tmp_path):
    import torch

    from sora_jax.evaluation.torch_features import PytorchFid
    from tests.sora_jax.models.published_inception import randomise

    net = randomise(PytorchFid(divisor))
    torch.save(net.state_dict(), tmp_path / "inception.pth")
    loaded = through_file(tmp_path / "inception.pth", kind, tmp_path, divisor)
    x = torch.rand(2, 3, side, side) * 2 - 1
    with torch.no_grad():
        features, logits = net(x)
    found = ours(
        lambda rngs: Inception(InceptionConfig(divisor), rngs), network_params(loaded, 1e-3), x.permute(0, 2, 3, 1)
    )
    assert features.std() > 0.01
    np.testing.assert_allclose(found[0], features, **CLOSE)
    np.testing.assert_allclose(found[1], logits, **CLOSE)


def test_inception_of_a_torchscript_file(tmp_path):
    import torch

    from tests.sora_jax.models.published_inception import Nvidia, randomise

    net = randomise(Nvidia(16))
    torch.jit.script(net).save(tmp_path / "inception.pt")
    loaded = through_file(tmp_path / "inception.pt", "nvidia-inception", tmp_path, 16)
    x = torch.rand(2, 3, 107, 107) * 2 - 1
    with torch.no_grad():
        features, logits = net(x, return_features=True), net(x)
    found = ours(lambda rngs: Inception(InceptionConfig(16), rngs), network_params(loaded, 1e-3), x.permute(0, 2, 3, 1))
    np.testing.assert_allclose(found[0], features, **CLOSE)
    np.testing.assert_allclose(found[1], logits, **CLOSE)


@pytest.mark.parametrize(("eps", "divisor", "frames", "side"), [(1e-5, 1, 16, 7), (1e-5, 8, 10, 2), (1e-3, 8, 16, 2)])
def test_i3d_of_a_state_dict(eps, divisor, frames, side, tmp_path):
    """At ten frames a pool meets an odd number of them, where paddings differ."""
    import torch

    from sora_jax.evaluation.torch_features import Piergiaj
    from tests.sora_jax.models.published_inception import randomise

    net = randomise(Piergiaj(divisor, eps, side))
    torch.save(net.state_dict(), tmp_path / "i3d.pt")
    loaded = through_file(tmp_path / "i3d.pt", "cd-fvd", tmp_path, divisor)
    x = torch.rand(1, 3, frames, 32 * side, 32 * side) * 2 - 1
    with torch.no_grad():
        expected = net(x)
    params = network_params(loaded, eps)
    found = ours(lambda rngs: I3d(I3dConfig(divisor=divisor), rngs), params, x.permute(0, 2, 3, 4, 1))
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("frames", [9, 10, 13, 16])
@pytest.mark.parametrize("scripted", [True, False])
def test_i3d_of_a_torchscript_file_and_its_state_dict(frames, scripted, tmp_path):
    import torch

    from tests.sora_jax.models.published_i3d import Hassony
    from tests.sora_jax.models.published_inception import randomise

    net = randomise(Hassony(8, 2))
    if scripted:
        torch.jit.script(net).save(tmp_path / "i3d.pt")
    else:
        torch.save(net.state_dict(), tmp_path / "i3d.pt")
    loaded = through_file(tmp_path / "i3d.pt", "stylegan-v" if scripted else "hassony2", tmp_path, 8)
    x = torch.rand(2, 3, frames, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = net(x, return_features=True)
    make, params = lambda rngs: I3d(I3dConfig(fixed_padding=True, divisor=8), rngs), network_params(loaded, 1e-3)
    np.testing.assert_allclose(ours(make, params, x.permute(0, 2, 3, 4, 1)), expected, **CLOSE)


@pytest.mark.parametrize(("nested", "frames", "patch"), [("module", 16, 14), ("model", 8, 16), ("", 20, 8)])
def test_videomae_of_a_training_programs_checkpoint(nested, frames, patch, tmp_path):
    """Two heads of 64; other numbers of frames than 16 take interpolated positions."""
    import torch

    from sora_jax.evaluation.torch_features import VideoMaeV2
    from tests.sora_jax.models.published_inception import randomise

    net = randomise(VideoMaeV2(128, 3, 2, 320, patch))
    state = net.state_dict()
    torch.save({"epoch": 3, nested: state, "lr": 0.1} if nested else state, tmp_path / "vit.pth")
    weights = read_published(tmp_path / "vit.pth", "videomae")
    assert weights.kind == "videomae 128x3" and "head.weight" in state and "head.weight" not in weights.tensors
    save_weights(weights, tmp_path / "converted.safetensors")
    loaded = load_weights(tmp_path / "converted.safetensors", "videomae")
    x = torch.rand(2, 3, frames, 4 * patch, 5 * patch)
    with torch.no_grad():
        expected = net(x)
    config = config_of(loaded.tensors)
    assert config == VideoMaeConfig(128, 3, 320, patch) and config.num_heads == 2
    found = ours(lambda rngs: VideoMae(config, rngs), network_params(loaded, 1e-6), x.permute(0, 2, 3, 4, 1))
    assert expected.std() > 0.01 and (expected[0] - expected[1]).abs().max() > 0.01
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_the_published_videomaes_have_their_published_names():
    """`vit_giant_patch14_224` has 1,012 million parameters up to its features, `vit_base_patch16_224` 86 million."""
    import torch

    from sora_jax.evaluation.torch_features import VideoMaeV2

    for config, heads, millions in ((GIANT, 16, 1011.6), (BASE, 12, 86.2)):
        with torch.device("meta"):
            net = VideoMaeV2(config.width, config.depth, config.num_heads, config.mlp_width, config.patch)
        shapes = {n: tuple(x.shape) for n, x in net.state_dict().items() if not n.startswith("head.")}
        assert videomae_shapes(config) == shapes and config.num_heads == heads
        assert sum(np.prod(shape) for shape in shapes.values()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_equal_weights_have_one_fingerprint_whatever_their_file(tmp_path):
    """A gamma of one, which one layout writes and another leaves out, is the same network."""
    import torch

    from sora_jax.evaluation.torch_features import PytorchFid
    from tests.sora_jax.models.published_inception import Nvidia, randomise

    scripted, plain = randomise(Nvidia(16)), PytorchFid(16).eval()
    torch.jit.script(scripted).save(tmp_path / "inception.pt")
    first = read_published(tmp_path / "inception.pt", "nvidia-inception", 16)
    parts = {"weight": "conv.weight", "gamma": "bn.weight", "beta": "bn.bias"}
    parts |= {"mean": "bn.running_mean", "variance": "bn.running_var"}
    state = plain.state_dict()
    for name, value in first.tensors.items():
        unit, _, part = name.rpartition(".")
        state[f"fc.{part}" if unit == "head" else f"{unit}.{parts[part]}"] = torch.from_numpy(value.copy())
    torch.save(state, tmp_path / "inception.pth", _use_new_zipfile_serialization=False)
    second = read_published(tmp_path / "inception.pth", "torch-fidelity", 16)
    assert second.fingerprint == first.fingerprint and second.kind != first.kind
    state["fc.bias"] = state["fc.bias"] + 1
    torch.save(state, tmp_path / "other.pth")
    assert read_published(tmp_path / "other.pth", "torch-fidelity", 16).fingerprint != first.fingerprint


def test_a_file_of_another_kind_names_both_shapes(tmp_path):
    import torch

    from sora_jax.evaluation.torch_features import Piergiaj, PytorchFid, VideoMaeV2

    state = PytorchFid(16).state_dict()
    torch.save(state, tmp_path / "thin.pth")
    with pytest.raises(UserError, match=r"conv.weight is of shape \(2, 3, 3, 3\), expected \(32, 3, 3, 3\)"):
        read_published(tmp_path / "thin.pth", "pytorch-fid")
    torch.save(Piergiaj(8).state_dict(), tmp_path / "i3d.pt")
    with pytest.raises(UserError, match=r"Conv2d_1a_3x3.conv.weight is missing, expected .*Conv3d_1a_7x7"):
        read_published(tmp_path / "i3d.pt", "pytorch-fid", 16)
    with pytest.raises(UserError, match=r"layers.conv.weight is missing, expected .*Conv2d_1a_3x3"):
        read_published(tmp_path / "thin.pth", "nvidia-inception", 16)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.pt")
    with pytest.raises(UserError, match="no PyTorch file"):
        read_published(tmp_path / "scripted.pt", "cd-fvd", 8)
    with pytest.raises(UserError, match="layers.conv.weight is missing"):
        read_published(tmp_path / "scripted.pt", "nvidia-inception", 16)
    with pytest.raises(UserError, match=r"patch_embed.proj.weight is missing, expected \(1408, 3, 2, 14, 14\)"):
        read_published(tmp_path / "thin.pth", "videomae")
    scaled = VideoMaeV2(128, 2, 2, 320, 16).state_dict() | {"blocks.0.gamma_1": torch.ones(128)}
    torch.save(scaled, tmp_path / "scaled.pth")
    with pytest.raises(UserError, match=r"holds blocks.0.gamma_1 \(1 such tensors\), which VideoMAE has not"):
        read_published(tmp_path / "scaled.pth", "videomae")
    state["fc.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="fc.bias holds numbers that are not finite"):
        read_published(tmp_path / "nan.pth", "pytorch-fid", 16)
    (tmp_path / "thin.pth").rename(tmp_path / "thin-01234567.pth")
    with pytest.raises(UserError, match="expected 01234567…"):
        read_published(tmp_path / "thin-01234567.pth", "pytorch-fid")
