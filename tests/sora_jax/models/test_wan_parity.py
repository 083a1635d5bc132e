"""Wan 2.1's VAE beside diffusers' AutoencoderKLWan, from files that it has written."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sora_jax.models.autoencoder import Cache
from sora_jax.models.codec import Codec, apply, to_float
from sora_jax.models.wan import WanConfig
from sora_jax.models.wan_files import LATENT_MEAN, LATENT_STD, load_wan, read_weights, stored_tensors
from tests.sora_jax.models.published_wan import original_name

pytestmark = [
    pytest.mark.diffusers,
    # torch, diffusers and what they import warn about each other's releases
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def theirs():
    """A small AutoencoderKLWan whose every parameter has a value of its own; a fresh one's gammas are all one."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(base_dim=8).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(torch.randn_like(value) * (0.2 if name.endswith("gamma") else 0.02))
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec(folder) -> Codec:
    return load_wan(folder)


@pytest.mark.parametrize("num_frames", [1, 5, 9, 17])
def test_whole_and_chunks_equal_diffusers(theirs, codec, num_frames):
    """diffusers codes four frames at a time; here whole, and in chunks of two latents."""
    import torch

    video = np.random.default_rng(num_frames).integers(0, 256, (2, num_frames, 32, 48, 3), np.uint8)
    x = torch.as_tensor(video).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    mean, log_variance, frames = (channels_last(t) for t in (posterior.mean, posterior.logvar, decoded))
    assert np.std(mean) > 0.05 and np.std(frames) > 0.05
    encode, decode = coders(codec)
    for chunk in (100, 2):
        caches: list[Cache] = [[], []]
        for start in range(0, mean.shape[1], chunk):
            stop = min(start + chunk, mean.shape[1])
            at = slice(max(0, 4 * start - 3), 4 * stop - 3)
            found, caches[0] = encode(to_float(video[:, at]), caches[0])
            np.testing.assert_allclose(found.mean, mean[:, start:stop], atol=1e-4)
            np.testing.assert_allclose(found.log_variance, log_variance[:, start:stop], atol=1e-4)
            pixels, caches[1] = decode(mean[:, start:stop], caches[1])
            np.testing.assert_allclose(pixels, frames[:, at], atol=1e-4)
    np.testing.assert_allclose(codec.encode(video), mean, atol=1e-4)


def coders(codec: Codec):
    model = apply(codec.config, codec.params)
    return jax.jit(lambda x, cache: model.encode(x, cache)), jax.jit(lambda z, cache: model.decode(z, cache))


def channels_last(tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 4, 1).numpy()


def test_the_published_network_has_these_tensors_and_statistics():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):  # nothing is allocated
        model = diffusers.AutoencoderKLWan()
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert dict(stored_tensors(WanConfig()).values()) == expected
    assert tuple(model.config.latents_mean) == LATENT_MEAN and tuple(model.config.latents_std) == LATENT_STD
    cfg = WanConfig()
    assert cfg.spatial_compression == model.config.scale_factor_spatial
    assert cfg.temporal_compression == model.config.scale_factor_temporal


def test_the_originals_names_are_those_that_diffusers_converts(folder, codec, tmp_path):
    """A file as `Wan2.1_VAE.pth` is: the names here, diffusers' own conversion of them, and what is loaded."""
    import torch
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    values = load_file(folder / "diffusion_pytorch_model.safetensors")
    original = {original_name(name, codec.config.num_blocks): torch.as_tensor(value) for name, value in values.items()}
    converted = convert_wan_vae_to_diffusers(original)
    assert converted.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(converted[name].numpy(), value)
    torch.save(original, tmp_path / "Wan2.1_VAE.pth")
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path / "Wan2.1_VAE.pth", codec.config), codec.params)
