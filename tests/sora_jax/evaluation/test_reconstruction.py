"""PSNR, SSIM and the latents' health against their definitions; reconstruction keeps order and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from sora_jax.evaluation.figures import comparison_sheet
from sora_jax.evaluation.latent_health import LatentHealth, draw_health
from sora_jax.evaluation.reconstruction import (
    MAX_PSNR_DB,
    Reconstruction,
    flicker,
    means,
    psnr_db,
    reconstruct,
    reconstruct_same,
    scores,
    ssim,
    to_legal,
)
from sora_jax.models.autoencoder import AutoencoderConfig, Posterior, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.layers import initialise


def _video(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_psnr_of_a_known_error():
    grey = np.full((2, 16, 16, 3), 100, np.uint8)
    assert psnr_db(grey, grey + np.uint8(5)) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr_db(grey, grey) == MAX_PSNR_DB


def test_flicker_is_change_that_was_not_there():
    clip = _video(4, 8, 8)
    darker = (clip // 2 + 10).astype(np.uint8)
    assert flicker(clip, clip) == 0 and flicker(darker, darker + np.uint8(7)) == 0
    blinking = darker + 6 * (np.arange(4) % 2).astype(np.uint8)[:, None, None, None]
    assert flicker(darker, blinking) == pytest.approx(6)


def test_ssim_of_identical_shifted_and_opposite_clips():
    video = _video(2, 24, 32)
    assert ssim(video, video) == pytest.approx(1)
    assert -1 <= ssim(video, 255 - video) < -0.9
    # without structure only the luminance term is left, for which the definition has a closed form
    a, b, c1 = 90.0, 110.0, (0.01 * 255) ** 2
    flat = ssim(np.full((1, 16, 16, 3), 90, np.uint8), np.full((1, 16, 16, 3), 110, np.uint8))
    assert flat == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))


def test_ssim_equals_the_sum_over_a_window():
    """One position, computed directly with the 11x11 Gaussian window."""
    a, b = _video(1, 11, 11), _video(1, 11, 11, seed=1)
    with pytest.raises(UserError, match="11"):
        ssim(a[:, :10], b[:, :10])
    x = np.arange(-5, 6)
    window = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[..., None]
    p, q = a[0].astype(float), b[0].astype(float)
    mean_p, mean_q = (window * p).sum((0, 1)), (window * q).sum((0, 1))
    var_p, var_q = (window * p * p).sum((0, 1)) - mean_p**2, (window * q * q).sum((0, 1)) - mean_q**2
    cov = (window * p * q).sum((0, 1)) - mean_p * mean_q
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mean_p * mean_q + c1) * (2 * cov + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
    assert ssim(a, b) == pytest.approx(expected.mean(), abs=1e-10)


@pytest.mark.parametrize(
    ("shape", "legal"), [((9, 32, 40), (9, 32, 40)), ((12, 35, 47), (9, 32, 40)), ((1, 8, 8), (1, 8, 8))]
)
def test_legal_shapes(shape, legal):
    assert to_legal(_video(*shape), 4, 8).shape == (*legal, 3)


def test_a_clip_smaller_than_a_latent_is_an_error():
    with pytest.raises(UserError, match="7x16"):
        to_legal(_video(1, 16, 7), 4, 8)


def test_frames_that_another_autoencoder_leaves_out_are_an_error():
    config = AutoencoderConfig(latent_channels=4, patch_size=8, stages=(Stage(2, 2, 8, 1),))
    params = initialise(lambda rngs: VideoAutoencoder(config, rngs), jax.random.key(0))
    codec, clip = Codec(config, params, np.zeros(4, np.float32), np.ones(4, np.float32)), _video(2, 16, 24)
    with pytest.raises(UserError, match="coarse codes only 1 frames of 16x16 of the 2 frames of 24x16"):
        reconstruct_same(codec, [Reconstruction(clip, clip)], "coarse")


def test_means_leave_out_what_a_single_frame_has_not():
    clip, image = _video(3, 16, 16), _video(1, 16, 16)
    rows = scores([Reconstruction(clip, clip), Reconstruction(image, image)], None)
    assert rows[1]["flicker"] is None
    expected = {"num_clips": 2, "psnr_db": MAX_PSNR_DB, "ssim": 1.0, "flicker": 0.0, "psnr_db_deviation": 0.0}
    assert means(rows) == pytest.approx(expected)


def test_reconstruction_keeps_the_order_of_mixed_shapes():
    config = AutoencoderConfig(latent_channels=4, patch_size=4, stages=(Stage(1, 2, 8, 1), Stage(2, 2, 8, 1)))
    params = initialise(lambda rngs: VideoAutoencoder(config, rngs), jax.random.key(0))
    codec = Codec(config, params, np.zeros(4, np.float32), np.ones(4, np.float32))
    clips = [_video(5, 16, 16, seed=i) if i % 2 else _video(1, 16, 24, seed=i) for i in range(5)]
    pairs, _ = reconstruct(codec, clips, batch_rows=2)
    for clip, pair in zip(clips, pairs, strict=True):
        np.testing.assert_array_equal(pair.original, clip)
        alone = codec.decode(codec.encode(clip[None]))[0]
        assert np.abs(pair.decoded.astype(int) - alone.astype(int)).max() <= 1


def test_the_health_of_latents_is_that_of_all_positions_and_dead_channels_are_named(tmp_path):
    """Channel 1 sees nothing, and channel 2's posterior is the unit Gaussian wherever it is."""
    rng = np.random.default_rng(0)
    mean = rng.normal(2.0, 3.0, (3, 2, 4, 4, 3)).astype(np.float32)
    log_variance = rng.normal(-2.0, 0.1, mean.shape).astype(np.float32)
    mean[..., 1], mean[..., 2], log_variance[..., 2] = 0.5, 0.0, 0.0
    health = LatentHealth(3)
    for part in (slice(0, 1), slice(1, 3)):
        health.add(Posterior(jnp.asarray(mean[part]), jnp.asarray(log_variance[part])))
    found = health.describe()
    assert found["num_positions"] == 3 * 2 * 4 * 4 and found["dead_channels"] == [1, 2]
    np.testing.assert_allclose(found["mean"], mean.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["deviation"], mean.std((0, 1, 2, 3)), rtol=1e-5, atol=1e-6)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    np.testing.assert_allclose(found["kl_nats"], kl.mean((0, 1, 2, 3)), rtol=1e-5, atol=1e-7)
    assert found["noise_deviation"][2] == 1.0
    draw_health(found, tmp_path / "health.png")
    with Image.open(tmp_path / "health.png") as picture:
        assert picture.size[0] > 500


def test_a_sheet_shows_the_clip_what_was_made_of_it_and_the_error():
    clip = np.full((9, 16, 24, 3), 100, np.uint8)
    sheet = comparison_sheet(clip, clip - 10)
    assert sheet.shape == (3 * 16 + 2 * 2, 5 * 24 + 4 * 2, 4)
    assert [int(sheet[row, 0, 0]) for row in (0, 18, 36)] == [100, 90, 40]
