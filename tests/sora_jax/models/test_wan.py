"""Wan 2.1's VAE: exact in chunks, causal, the same from either layout, and errors that name what a file lacks."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipeline.errors import UserError
from sora_jax.models.autoencoder import Cache
from sora_jax.models.codec import apply, load_codec, to_float
from sora_jax.models.wan import WanConfig
from sora_jax.models.wan_files import LATENT_MEAN, LATENT_STD, load_wan, stored_tensors
from tests.sora_jax.models.published_wan import SMALL, describe, original_name, tensors, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("wan"), describe(), tensors())


@pytest.fixture(scope="module")
def codec(folder):
    return load_wan(folder)


@pytest.fixture(scope="module")
def coders(codec):
    """Jitted `encode` to the mean, and `decode`: one program for each shape of a chunk."""

    def encode(video: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        posterior, cache = apply(codec.config, codec.params).encode(video, cache)
        return posterior.mean, cache

    return jax.jit(encode), jax.jit(lambda z, cache: apply(codec.config, codec.params).decode(z, cache))


def clip(num_frames: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (1, num_frames, 16, 24, 3), np.uint8)


def test_chunks_equal_the_whole_and_nothing_looks_ahead(coders):
    """Chunks of one, three and one latents: each is a part of the whole, which has more frames behind it."""
    encode, decode = coders
    video = to_float(clip(17))
    whole, _ = encode(video, [])
    pixels, _ = decode(whole, [])
    assert whole.shape == (1, 5, 4, 6, 16) and pixels.shape == video.shape
    assert np.std(whole) > 0.05 and np.std(pixels) > 0.05, "a network that ignores its input would pass"
    caches: list[Cache] = [[], []]
    for start, stop in ((0, 1), (1, 4), (4, 5)):
        frames = slice(max(0, 4 * start - 3), 4 * stop - 3)
        mean, caches[0] = encode(video[:, frames], caches[0])
        decoded, caches[1] = decode(whole[:, start:stop], caches[1])
        np.testing.assert_allclose(mean, whole[:, start:stop], atol=1e-5)
        np.testing.assert_allclose(decoded, pixels[:, frames], atol=1e-5)


def test_the_codec_streams_it_and_gives_it_back_from_its_export(codec, coders, tmp_path):
    video = clip(17)
    whole, _ = coders[0](to_float(video), [])
    latents = codec.encode(video)
    np.testing.assert_allclose(latents, whole, atol=1e-5)
    pixels = np.asarray(coders[1](whole, [])[0])
    np.testing.assert_allclose(codec.decode(latents), (pixels + 1) * 127.5, atol=0.51)  # rounded to 8 bits
    pieces = list(codec.decode_stream([latents[:, :3], latents[:, 3:]]))
    np.testing.assert_allclose(np.concatenate(pieces, axis=1).astype(int), codec.decode(latents).astype(int), atol=1)
    codec.save(tmp_path / "export")
    again = load_codec(tmp_path / "export")
    assert again.config == codec.config and again.fingerprint == codec.fingerprint
    np.testing.assert_array_equal(again.encode(video), latents)
    np.testing.assert_allclose(codec.denormalise(codec.normalise(latents)), latents, atol=1e-5)
    np.testing.assert_allclose(codec.latent_mean, describe()["latents_mean"], rtol=1e-6)


def test_an_unknown_architecture_in_an_export_is_named(codec, tmp_path):
    codec.save(tmp_path)
    header = json.loads((tmp_path / "autoencoder.json").read_text())
    assert header["architecture"] == "wan"
    (tmp_path / "autoencoder.json").write_text(json.dumps({**header, "architecture": "ltx"}))
    with pytest.raises(UserError, match="is 'ltx', which is none of sora_jax, taef2, wan"):
        load_codec(tmp_path)


def test_bfloat16_is_near_float32(folder, codec):
    half, video = load_wan(folder, "bfloat16"), clip(1)
    assert half.fingerprint != codec.fingerprint
    exact = codec.encode(video)
    assert 0 < np.max(np.abs(half.encode(video) - exact)) < 0.1 * np.std(exact) + 0.1


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((4, 16, 24), "4 frames is not 1 \\+ 4 n; the nearest legal number is 5"),
        ((5, 2, 6), "6x2 does not divide by 4; the nearest legal size is 8x4"),
        ((1, 0, 8), "8x0 does not divide by 4; the nearest legal size is 8x4"),
    ],
)
def test_illegal_shapes_name_the_nearest_legal_ones(codec, shape, says):
    with pytest.raises(UserError, match=says):
        codec.encode(np.zeros((1, *shape, 3), np.uint8))


def test_both_layouts_are_the_same_autoencoder_and_a_changed_number_is_another(codec, tmp_path):
    values = tensors()
    renamed = {original_name(name, SMALL.num_blocks): value for name, value in values.items()}
    assert not set(renamed) & set(values)
    assert load_wan(write(tmp_path / "original", describe(), renamed)).fingerprint == codec.fingerprint
    values["decoder.conv_out.bias"][1] += 1e-3
    assert load_wan(write(tmp_path / "other", describe(), values)).fingerprint != codec.fingerprint


def test_weights_stored_in_bfloat16_are_read(tmp_path):
    values = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors().items()}
    rounded = load_wan(write(tmp_path / "half", describe(), values))
    whole = load_wan(write(tmp_path / "whole", describe(), {n: v.astype(np.float32) for n, v in values.items()}))
    assert rounded.fingerprint == whole.fingerprint


def test_a_file_alone_is_the_published_network(tmp_path):
    """The file has its 194 tensors, of one number each, so that the first shape is wrong."""
    names = {name: np.zeros((1,), np.float32) for name, _ in stored_tensors(WanConfig()).values()}
    assert len(names) == 194 and len(LATENT_MEAN) == len(LATENT_STD) == WanConfig.latent_channels
    save_file(names, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=r"has shape \(1,\), expected \(.*base_dim 96\) give the folder"):
        load_wan(tmp_path / "vae.safetensors")


def lose(values):
    del values["encoder.conv_in.bias"], values["decoder.mid_block.attentions.0.to_qkv.weight"]


def add(values):
    values["encoder.down_blocks.0.norm3.gamma"] = np.ones((8, 1, 1, 1), np.float32)


def bend(values):
    values["quant_conv.weight"] = np.zeros((32, 16, 1, 1, 1), np.float32)


def spoil(values):
    values["decoder.conv_in.bias"][0] = np.nan


def quantise(values):
    values["decoder.conv_in.bias"] = values["decoder.conv_in.bias"].astype(np.int8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (spoil, r"decoder\.conv_in\.bias holds numbers that are not finite"),
        (quantise, r"decoder\.conv_in\.bias holds int8, not floating-point numbers"),
        (lose, r"lacks 2 of \d+ tensors of Wan's VAE with base_dim 8, such as decoder\.mid_block.*holds no others"),
        (add, r"holds encoder\.down_blocks\.0\.norm3\.gamma, which Wan 2\.1's VAE has not"),
        (bend, r"quant_conv\.weight has shape \(32, 16, 1, 1, 1\), expected \(32, 32, 1, 1, 1\)"),
    ],
)
def test_tensors_that_are_not_those_of_the_config_are_named(tmp_path, change, says):
    values = tensors()
    change(values)
    with pytest.raises(UserError, match=says):
        load_wan(write(tmp_path, describe(), values))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "AutoencoderKLLTXVideo"}, "describes a 'AutoencoderKLLTXVideo'; known is AutoencoderKLWan"),
        ({"is_residual": True}, r"is_residual is True, but .* only False is known \(Wan 2\.1\)"),
        ({"patch_size": 2}, "patch_size is 2"),
        ({"attn_scales": [0.5]}, r"attn_scales is \[0\.5\]"),
        ({"decoder_base_dim": 4}, "decoder_base_dim is 4, but encoder and decoder must be as wide: base_dim is 8"),
        ({"temperal_downsample": [True]}, "3 widths have 2 steps, not 1"),
        ({"base_dim": "wide"}, "base_width must be int, not 'wide'"),
        ({"latents_mean": [0.0] * 3}, "latents_mean has 3 numbers, but z_dim is 16"),
        ({"latents_std": [0.0] * 16}, "latents_std is .* but must be finite, and deviations above 0"),
        ({"latents_std": None}, "latents_std is None, but must be a list of numbers"),
    ],
)
def test_other_architectures_are_refused(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        load_wan(write(tmp_path, describe(**changes), tensors()))


def test_missing_and_damaged_files_are_named(tmp_path, folder):
    with pytest.raises(UserError, match=r"there is no file .*nothing\.pth"):
        load_wan(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match=r"config\.json cannot be read .* give the `vae` folder"):
        load_wan(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(describe()))
    with pytest.raises(UserError, match=r"there is no file .*diffusion_pytorch_model\.safetensors"):
        load_wan(tmp_path)
    (tmp_path / "vae.safetensors").write_bytes(b"\0" * 16)
    with pytest.raises(UserError, match=r"vae\.safetensors is no whole safetensors file"):
        load_wan(tmp_path / "vae.safetensors")
    (tmp_path / "vae.pth").write_bytes(b"\0" * 16)
    with pytest.raises(UserError, match=r"vae\.pth is no PyTorch file"):
        load_wan(tmp_path / "vae.pth")
    with pytest.raises(UserError, match=r"has SHA-256 [0-9a-f]{64}, expected abc"):
        load_wan(folder, sha256="abc")
