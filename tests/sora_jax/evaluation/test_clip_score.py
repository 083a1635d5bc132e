"""CLIPScore by hand, and that it knows neither the batch nor the devices."""

import jax
import numpy as np
import pytest

from sora_jax.evaluation.clip_score import ClipNetwork, ClipProtocol, _others, fit, interval_of, score_videos
from sora_jax.evaluation.media import MediaSet
from sora_jax.models.clip_files import read_published_clip
from tests.sora_jax.models import published_clip as published

pytest.importorskip("tokenizers")

CAPTIONS = ["a red circle", "a blue square", "a blue square", "red", "a red circle"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return read_published_clip(published.write(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def media():
    """Videos of several sizes and lengths, each frame of one colour: to random weights all noise is alike."""
    rng = np.random.default_rng(0)
    colours = [rng.integers(0, 256, (1 + 3 * i, 1, 1, 3)) for i in range(len(CAPTIONS))]
    videos = [np.tile(c, (1, 24 + i, 30 - i, 1)).astype(np.uint8) for i, c in enumerate(colours)]
    names = tuple(map(str, range(len(videos))))
    return MediaSet("memory", names, names, lambda i, most: videos[i][:most], {})


@pytest.fixture(scope="module")
def network(weights):
    return ClipNetwork(weights, jax.devices()[:1])


@pytest.fixture(scope="module")
def found(network, media):
    return score_videos(network, media, CAPTIONS, ClipProtocol(), 2)


def test_a_score_is_the_mean_over_frames_of_the_positive_cosines(network, media, found):
    texts = network.captions(network.tokenize(CAPTIONS))
    cosines = [texts @ network.pictures(fit(media.read(i, None), 24)).T for i in range(len(media))]
    assert min(c.min() for c in cosines) < -0.01 and max(c.max() for c in cosines) > 0.01  # both signs are met
    np.testing.assert_allclose(found.own, [100 * np.maximum(c[i], 0).mean() for i, c in enumerate(cosines)], atol=1e-3)
    others = (1, 3, 3, 4, 1)  # the next caption that differs, in a circle
    expected = [100 * np.maximum(c[j], 0).mean() for j, c in zip(others, cosines, strict=True)]
    np.testing.assert_allclose(found.exchanged, expected, atol=1e-3)
    assert found.num_frames == 1 + 4 + 7 + 10 + 13 and found.num_truncated == 0


def test_scores_know_neither_batch_nor_devices(weights, network, media, found):
    np.testing.assert_array_equal(score_videos(network, media, CAPTIONS, ClipProtocol(), 5).own, found.own)
    spread = score_videos(ClipNetwork(weights, jax.devices()[:3]), media, CAPTIONS, ClipProtocol(), 3)
    np.testing.assert_allclose(spread.own, found.own, rtol=1e-6, atol=1e-6)


def test_only_the_first_frames_if_asked_for(network, media):
    protocol = ClipProtocol(max_frames=1)
    first = score_videos(network, media, ["red"] * 5, protocol)
    assert first.num_frames == 5 and first.exchanged is None and protocol.fingerprint != ClipProtocol().fingerprint
    assert "first 1 frames" in protocol.name


def test_an_interval_narrows_with_more_videos():
    """The deviation of a mean is that of a score over the root of their number."""
    scores = np.random.default_rng(0).normal(25, 3, 400)
    interval = interval_of(scores, 2000)
    assert interval.deviation == pytest.approx(3 / 20, rel=0.1) and interval.low < scores.mean() < interval.high
    assert interval_of(scores, 1) is None and interval_of(scores[:1], 2000) is None


def test_a_caption_is_exchanged_for_the_next_that_differs():
    assert _others(["a", "b", "b", "c", "a"]) == [1, 3, 3, 4, 1] and _others(["a", "a"]) == [0, 1]
