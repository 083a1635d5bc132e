"""A start from principal components is the best linear code, in mean and error what the definition says."""

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.layers import initialise
from sora_jax.models.principal import START_LOG_VARIANCE, principal_weights, with_weights

CONFIG = AutoencoderConfig(6, 2, (Stage(1, 2, 16, 1), Stage(2, 2, 128, 1)), norm_latents=False)


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    """Smooth moving pictures, 9 frames of 16x16: few components carry most of them."""
    rng = np.random.default_rng(0)
    t, y, x = np.meshgrid(np.arange(9), np.arange(16), np.arange(16), indexing="ij")
    waves = [np.sin((a * x + b * y) / 9 + c * t + d) for a, b, c, d in rng.uniform(-1, 1, (32 * 3, 4))]
    return (127.5 + 100 * np.stack(waves).reshape(32, 3, 9, 16, 16).transpose(0, 2, 3, 4, 1)).astype(np.uint8)


def codec(config: AutoencoderConfig, videos: np.ndarray, whiten: bool = True) -> Codec:
    params = initialise(lambda rngs: VideoAutoencoder(config, rngs), jax.random.key(0))
    zeros = np.zeros(config.latent_channels, np.float32)
    return Codec(config, with_weights(params, principal_weights(config, [videos], whiten)), zeros, zeros + 1)


def test_the_error_is_what_the_components_leave_out(videos):
    """Beside the eigenvalues of whole 4x4x4 blocks: 16 and 128 components lose little, 6 what the spectrum says."""
    made = codec(CONFIG, videos)
    posterior = made.posterior(videos)
    later = posterior.mean[:, 1:].reshape(-1, 6)
    np.testing.assert_allclose(later.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(later.std(0), 1, atol=0.02)
    np.testing.assert_array_equal(posterior.log_variance, START_LOG_VARIANCE)
    least = np.linalg.eigvalsh(np.cov(blocks(videos).T, bias=True))[:-6].sum() / 192
    error = np.square(made.decode(posterior.mean)[:, 1:].astype(np.float64) - videos[:, 1:]).mean()
    assert least <= error <= 1.05 * least + 1  # pixels are rounded and clipped


def test_latents_that_are_not_whitened_keep_the_distances_of_pictures(videos):
    """All together have deviation 1, and two blocks of the reconstruction are as far apart as their latents are."""
    made = codec(CONFIG, videos, whiten=False)
    latents = made.posterior(videos).mean
    pictures = blocks(made.decode(latents))
    latents = latents[:, 1:].reshape(-1, 6)
    np.testing.assert_allclose(np.square(latents.std(0)).mean(), 1, atol=0.02)
    apart = [np.linalg.norm(x[::2] - x[1::2], axis=1) for x in (pictures, latents)]
    ratio = apart[0] / apart[1]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=0.03)  # pixels are rounded


def blocks(videos: np.ndarray) -> np.ndarray:
    """The 4x4x4 blocks after the first frame, as rows."""
    x = videos[:, 1:].astype(np.float64).reshape(32, 2, 4, 4, 4, 4, 4, 3)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 192)


def test_more_width_than_data_has_dims_loses_nothing(videos):
    wide = AutoencoderConfig(64, 2, (Stage(1, 1, 16, 0), Stage(1, 1, 64, 0)), norm_latents=False)
    made = codec(wide, videos)
    assert np.abs(made.decode(made.encode(videos)).astype(int) - videos).max() <= 1


@pytest.mark.parametrize(
    ("config", "frames", "says"),
    [
        (AutoencoderConfig(6, 2, CONFIG.stages), 9, "norm_latents=False"),
        (CONFIG, 1, "clips of 5 frames or more"),
        (AutoencoderConfig(6, 8, CONFIG.stages, norm_latents=False), 9, "too few"),
    ],
)
def test_no_start_is_possible(videos, config, frames, says):
    with pytest.raises(UserError, match=says):
        principal_weights(config, [videos[:1, :frames]])
