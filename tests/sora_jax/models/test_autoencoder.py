"""The autoencoder: causal, exact in chunks, an image is a one-frame video, illegal shapes name legal ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import UserError
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec, apply
from sora_jax.models.layers import initialise
from sora_jax.parallel import make_mesh

CONFIG = AutoencoderConfig(latent_channels=4, stages=(Stage(1, 1, 8, 1), Stage(2, 2, 8, 1), Stage(1, 2, 12, 1)))


@pytest.fixture(scope="module")
def model():
    params = jax.jit(lambda key: initialise(lambda rngs: VideoAutoencoder(CONFIG, rngs), key))(jax.random.key(0))
    # Residual branches start at zero, where any cache would pass: give every parameter a value.
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), params)
    return apply(CONFIG, noisy)


def video(num_frames: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(2), (2, num_frames, 16, 24, 3), minval=-1.0)


@pytest.mark.parametrize("num_frames, chunk", [(17, 4), (17, 8), (25, 12), (1, 4), (5, 4)])
def test_chunks_equal_the_whole(model, num_frames, chunk):
    clip = video(num_frames)
    whole, _ = model.encode(clip, [])
    decoded, _ = model.decode(whole.mean, [])
    means, frames, encode_cache, decode_cache, start = [], [], [], [], 0
    for end in [1, *range(1 + chunk, num_frames + chunk, chunk)]:
        part = clip[:, start : min(end, num_frames)]
        if part.shape[1]:
            posterior, encode_cache = model.encode(part, encode_cache)
            pixels, decode_cache = model.decode(posterior.mean, decode_cache)
            means.append(posterior.mean)
            frames.append(pixels)
        start = end
    np.testing.assert_allclose(np.concatenate(means, 1), whole.mean, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(frames, 1), decoded, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_every_length_in_chunks_equals_the_whole(chunk):
    """Every legal length from 1 to 129, in chunks of 1, 3 and 8 latents, a shorter one last; a tiny network.

    Nothing looks ahead (tested above), so that the whole of a shorter clip is the beginning of the longest; that is
    compared too, for some lengths.
    """
    config = AutoencoderConfig(latent_channels=2, stages=(Stage(2, 2, 4, 1), Stage(1, 2, 4, 1)))
    params = initialise(lambda rngs: VideoAutoencoder(config, rngs), jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), params)
    encode = jax.jit(lambda x, cache: apply(config, params).encode(x, cache))
    decode = jax.jit(lambda z, cache: apply(config, params).decode(z, cache))
    clip = jax.random.uniform(jax.random.key(2), (1, 129, 8, 8, 3), minval=-1.0)
    whole = encode(clip, [])[0].mean
    pixels, step = decode(whole, [])[0], 4 * chunk
    for num_frames in (5, 65):
        mean = encode(clip[:, :num_frames], [])[0].mean
        np.testing.assert_allclose(mean, whole[:, : mean.shape[1]], atol=1e-5)
        np.testing.assert_allclose(decode(mean, [])[0], pixels[:, :num_frames], atol=1e-5)
    for num_frames in range(1, 130, 4):
        caches, start = ([], []), 0
        while start < num_frames:
            end = min(start + step + (start == 0), num_frames)
            posterior, encode_cache = encode(clip[:, start:end], caches[0])
            frames, decode_cache = decode(posterior.mean, caches[1])
            first = (start + 3) // 4
            expected = whole[:, first : first + posterior.mean.shape[1]]
            np.testing.assert_allclose(posterior.mean, expected, atol=1e-5)
            np.testing.assert_allclose(frames, pixels[:, start:end], atol=1e-5)
            caches, start = (encode_cache, decode_cache), end


def test_shapes_and_image_as_video(model):
    posterior, _ = model.encode(video(9), [])
    assert posterior.mean.shape[1:] == CONFIG.latent_shape(9, 16, 24) == (3, 2, 3, 4)
    image, _ = model.encode(video(9)[:, :1], [])
    np.testing.assert_allclose(image.mean[:, 0], posterior.mean[:, 0], atol=1e-5)


def test_the_future_does_not_reach_the_past(model):
    clip = video(9)
    changed = clip.at[:, 5:].set(0.0)
    a, b = model.encode(clip, [])[0].mean, model.encode(changed, [])[0].mean
    assert jnp.all(a[:, :2] == b[:, :2]) and not jnp.allclose(a[:, 2], b[:, 2])


@pytest.fixture(scope="module")
def codec(model):
    return Codec(CONFIG, nnx.to_pure_dict(nnx.state(model)), np.zeros(4, np.float32), np.ones(4, np.float32))


def test_pieces_are_one_stream(codec):
    """Pieces that end with a chunk are decoded by the same programs as the whole; others may round differently."""
    latents = np.random.default_rng(3).standard_normal((1, 11, 2, 3, 4), np.float32)
    whole = codec.decode(latents)
    for sizes, levels in (((5, 4, 2), 0), ((9, 2), 0), ((1, 4, 0, 4, 2), 1)):
        pieces = np.split(latents, np.cumsum(sizes)[:-1], axis=1)
        parts = list(codec.decode_stream(iter(pieces)))
        assert max(part.shape[1] for part in parts) <= 17  # 1 + 4 x 4 frames: a chunk, whatever the piece
        np.testing.assert_allclose(np.concatenate(parts, axis=1).astype(int), whole.astype(int), rtol=0, atol=levels)
    assert np.mean(codec.decode(latents[:, 6:])[:, 1:] != whole[:, 25:]) > 0.1, "what came before must matter"


def test_frames_come_before_the_next_piece_is_asked_for(codec):
    """Whoever makes the pieces may need the frames of the last one: that is how windows follow each other."""
    asked, shown = [], 0

    def pieces():
        for size in (5, 2, 2):
            asked.append(shown)
            yield np.zeros((1, size, 2, 3, 4), np.float32)

    for frames in codec.decode_stream(pieces()):
        shown += frames.shape[1]
    assert asked == [0, 17, 25] and shown == 33


def test_frames_in_pieces_are_one_stream(codec):
    frames = np.random.default_rng(4).integers(0, 256, (1, 33, 16, 24, 3), np.uint8)
    whole = codec.posterior(frames)
    for sizes in ((17, 16), (1, 4, 28)):
        pieces = np.split(frames, np.cumsum(sizes)[:-1], axis=1)
        parts = list(codec.encode_stream(iter(pieces)))
        assert max(part.mean.shape[1] for part in parts) <= 5  # 1 + 4 latents: a chunk, whatever the piece
        for made, expected in zip(zip(*parts, strict=True), whole, strict=True):
            np.testing.assert_allclose(np.concatenate(made, axis=1), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"15 frames, but it must have 4 n"):
        list(codec.encode_stream([frames[:, :17], frames[:, 17:32]]))


def test_several_devices_code_what_one_does(codec):
    """Clips over `data`, rows of pixels over `context`; the second chunk takes the first one's cache from the mesh."""
    frames = np.random.default_rng(5).integers(0, 256, (2, 25, 16, 24, 3), np.uint8)
    mesh = make_mesh({"data": 2, "context": 2}, jax.devices()[:4])
    spread, alone = codec.on_mesh(mesh).posterior(frames), codec.posterior(frames)
    for made, expected in zip(spread, alone, strict=True):
        np.testing.assert_allclose(made, expected, atol=1e-5)
    difference = codec.on_mesh(mesh).decode(alone.mean).astype(int) - codec.decode(alone.mean)
    assert np.abs(difference).max() <= 1  # rounded to 8 bits


COMPRESSIONS = [  # time, space, channels, and how the network gets there
    (4, 8, 4, AutoencoderConfig(4, 4, (Stage(1, 2, 8, 1), Stage(2, 2, 8, 1)))),
    (4, 16, 16, AutoencoderConfig(16, 4, (Stage(2, 2, 8, 1), Stage(2, 2, 8, 1)))),
    (8, 8, 32, AutoencoderConfig(32, 2, (Stage(2, 2, 8, 1), Stage(2, 2, 8, 1), Stage(1, 2, 8, 1)))),
    (8, 16, 128, AutoencoderConfig(128, 4, (Stage(2, 2, 8, 1), Stage(1, 2, 8, 1), Stage(2, 2, 8, 1)))),
]


@pytest.mark.parametrize("time, space, channels, config", COMPRESSIONS)
def test_a_compression_is_a_config(time, space, channels, config):
    assert (config.temporal_compression, config.spatial_compression) == (time, space)
    params = jax.jit(lambda key: initialise(lambda rngs: VideoAutoencoder(config, rngs), key))(jax.random.key(0))
    clip = np.random.default_rng(0).integers(0, 256, (1, 1 + 2 * time, 2 * space, space, 3), np.uint8)
    codec = Codec(config, params, np.zeros(channels, np.float32), np.ones(channels, np.float32))
    latents = codec.encode(clip)
    assert latents.shape[1:] == config.latent_shape(*clip.shape[1:4]) == (3, 2, 1, channels)
    assert codec.decode(latents).shape == clip.shape
    np.testing.assert_allclose(codec.encode(clip[:, :1]), latents[:, :1], atol=1e-5)
    assert codec.decode(latents[:, :1]).shape[1] == 1


@pytest.mark.parametrize("shape, says", [((8, 16, 16), "is 9"), ((9, 20, 16), "16x16"), ((0, 16, 16), "is 1")])
def test_illegal_shapes_name_the_nearest_legal_one(shape, says):
    with pytest.raises(UserError, match=says):
        CONFIG.latent_shape(*shape)
