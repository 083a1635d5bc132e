"""Known answers of the embedded networks' distances, on clips of the quickstart's world."""

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from data_pipeline.synthetic.render import render
from data_pipeline.synthetic.worlds import draw_scene
from sora_jax.evaluation.embedded_training import Training, render_clips, train_embedded
from sora_jax.evaluation.features import FeatureNetwork
from sora_jax.evaluation.frechet import frechet_distance, gaussian
from sora_jax.evaluation.protocols import PROTOCOLS, preprocess
from sora_jax.models.embedded import NETWORKS, load_embedded

NUM = 80


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.stack([render(draw_scene("quickstart", 4, i, (32, 32), 9))[0] for i in range(NUM)])


@pytest.fixture(scope="module")
def distance(clips):
    """(metric, other clips) -> the distance to the first half of them."""
    networks = {}
    for metric, network in (("synth-fd", "synth-image"), ("synth-fvd", "synth-video")):
        networks[metric] = FeatureNetwork(load_embedded(network), PROTOCOLS[metric], jax.devices()[:1])

    def features(metric: str, videos: np.ndarray) -> np.ndarray:
        found = networks[metric](np.stack([preprocess(PROTOCOLS[metric], video) for video in videos]))[0]
        return found.reshape(-1, found.shape[-1])

    real = {metric: gaussian(features(metric, clips), 1) for metric in networks}
    return lambda metric, videos: frechet_distance(real[metric], gaussian(features(metric, videos), 1), "symmetric")


def test_a_set_is_at_no_distance_from_itself_and_farther_the_more_it_is_spoilt(clips, distance):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(clips.shape)
    for metric in ("synth-fd", "synth-fvd"):
        itself = distance(metric, clips)
        blurred = [gaussian_filter(clips, (0, 0, s, s, 0)) for s in (0.5, 1.0, 2.0, 4.0)]
        noisy = [np.clip(clips + s * noise, 0, 255).astype(np.uint8) for s in (4, 16, 64)]
        for spoilt in (blurred, noisy):
            found = [distance(metric, one) for one in spoilt]
            assert abs(itself) < 1e-3 * found[0] and found == sorted(found), (metric, found)


def test_only_the_distance_of_videos_sees_the_order_of_frames(clips, distance):
    rng = np.random.default_rng(1)
    shuffled = np.stack([clip[rng.permutation(9)] for clip in clips])
    other = np.stack([render(draw_scene("quickstart", 5, i, (32, 32), 9))[0] for i in range(NUM)])
    assert abs(distance("synth-fd", shuffled)) < 1e-3 * distance("synth-fd", other)
    assert distance("synth-fvd", shuffled) > 2 * distance("synth-fvd", other)


def test_both_networks_train():
    clips, found = render_clips(1, 8)
    training = Training(num_clips=6, num_heldout=2, num_steps=2, batch=2)
    for name in NETWORKS:
        losses: list[float] = []
        tensors, accuracy = train_embedded(name, training, clips, found, lambda step, loss, to=losses: to.append(loss))
        assert np.isfinite(losses).all() and 0 <= accuracy["all"] <= 1
        assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in load_embedded(name).tensors.items()}
