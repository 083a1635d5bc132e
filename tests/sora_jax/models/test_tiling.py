"""Tiles equal the whole frame where they overlap by twice the network's reach, and nearly so where by less."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.models import codec as codec_module
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.layers import initialise
from sora_jax.models.tiling import Blend, Tiling, tiles

CONFIG = AutoencoderConfig(latent_channels=4, stages=(Stage(1, 1, 8, 1), Stage(2, 2, 8, 1)))


@pytest.fixture(scope="module")
def codec() -> Codec:
    """Every parameter with a value: residual branches start at zero, where no position sees another."""
    params = jax.jit(lambda key: initialise(lambda rngs: VideoAutoencoder(CONFIG, rngs), key))(jax.random.key(0))
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), params)
    return Codec(CONFIG, noisy, np.zeros(4, np.float32), np.ones(4, np.float32))


def tiled(codec: Codec, tile: int, overlap: int) -> Codec:
    return dataclasses.replace(codec, tiling=Tiling(tile, overlap))


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 11, 80, 136, 3), np.uint8)


def test_the_reach_is_how_far_a_latent_sees(codec, video):
    """One changed pixel in the middle of an image changes latents up to `spatial_reach` pixels away, and no further."""
    image, row, column = video[:, :1], 40, 72
    changed = image.copy()
    changed[0, 0, row, column] = 255 - changed[0, 0, row, column]
    moved = np.abs(codec.encode(changed) - codec.encode(image))[0, 0].max(-1) > 0
    rows, columns = (np.flatnonzero(moved.any(axis)) for axis in (1, 0))
    reach = -(-CONFIG.spatial_reach // 8)
    assert CONFIG.spatial_reach == 4 + 8 and reach == 2
    assert rows[0] >= row // 8 - reach and rows[-1] <= row // 8 + reach
    assert columns[0] >= column // 8 - reach and columns[-1] <= column // 8 + reach and len(columns) >= 3


def test_tiles_equal_the_whole(codec, video):
    whole = codec.encode(video)
    errors = {o: np.abs(tiled(codec, 64, o).encode(video) - whole).max() for o in (0, 16, 32)}
    assert errors[32] < 1e-5 < errors[16] < errors[0]
    pixels = codec.decode(whole).astype(int)
    errors = {o: np.abs(tiled(codec, 64, o).decode(whole).astype(int) - pixels) for o in (0, 8, 32)}
    assert errors[32].max() <= 1  # one level, where rounding to 8 bits falls the other way
    assert errors[32].mean() < 1e-3 < errors[8].mean() < errors[0].mean()
    pieces = tiled(codec, 64, 32).decode_stream([whole[:, :5], whole[:, 5:]])
    np.testing.assert_array_equal(np.concatenate(list(pieces), axis=1), tiled(codec, 64, 32).decode(whole))


def test_memory_does_not_grow_with_the_frame(codec, video):
    """A larger frame of the same tiles runs no new program: the device holds one tile of one chunk."""
    codec = tiled(codec, 48, 16)
    codec.decode(codec.encode(video))
    programs = codec_module._encode._cache_size(), codec_module._decode_float._cache_size()
    wide = np.concatenate([video, video], axis=3)
    codec.decode(codec.encode(wide))
    assert (codec_module._encode._cache_size(), codec_module._decode_float._cache_size()) == programs


@pytest.mark.parametrize("height, width", [(5, 40), (8, 8), (9, 23), (3, 4)])
@pytest.mark.parametrize("overlap", [0, 1, 3, 4])
def test_shares_add_up_to_one_everywhere(height, width, overlap):
    blend, frame = Blend(overlap, reach=2), np.random.default_rng(0).random((1, 2, height, width, 3))
    shapes = set()
    for tile in tiles(height, width, 8, overlap):
        shapes.add(tile.cut(frame).shape)
        blend.add(tile, tile.cut(frame))
    np.testing.assert_allclose(blend.mean(), frame, rtol=1e-6)
    assert len(shapes) == 1  # one program


@pytest.mark.parametrize("tile, overlap", [(60, 16), (64, 12), (64, 40), (64, -8)])
def test_tiles_that_do_not_fit_are_an_error(codec, video, tile, overlap):
    with pytest.raises(UserError, match=f"tiles of {tile} pixels that overlap by {overlap}"):
        tiled(codec, tile, overlap).encode(video[:, :1])
