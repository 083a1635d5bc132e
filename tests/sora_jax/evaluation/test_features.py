"""Features do not know how many clips are read at a time nor how many devices there are; the real side is kept."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.video_io import write_video
from sora_jax.evaluation.features import FeatureNetwork, cached_features, extract
from sora_jax.evaluation.frechet import frechet_distance, gaussian
from sora_jax.evaluation.media import MediaSet, open_media
from sora_jax.evaluation.protocols import PROTOCOLS, Resize
from tests.sora_jax.models.thin_networks import thin_weights

PROTOCOL = dataclasses.replace(
    PROTOCOLS["google"], num_frames=9, steps=(Resize("tf1-bilinear", 32), PROTOCOLS["google"].steps[1])
)
NUM = 11


def clips(seed: int, num: int = NUM, short: tuple[int, ...] = ()) -> MediaSet:
    """Videos of several sizes; those in `short` have too few frames."""
    rng = np.random.default_rng(seed)
    videos = [
        rng.integers(0, 256, (8 if i in short else 9 + i % 3, 20 + i, 30 - i, 3)).astype(np.uint8) for i in range(num)
    ]
    names = tuple(f"{seed}/{i}" for i in range(num))
    return MediaSet("memory", names, names, lambda i, most: videos[i][:most], {})


@pytest.fixture(scope="module")
def one_device():
    return FeatureNetwork(thin_weights("i3d"), PROTOCOL, jax.devices()[:1])


@pytest.fixture(scope="module")
def reference(one_device):
    return [extract(one_device, clips(seed), 7).features for seed in (0, 1)]


def distance(sides) -> float:
    return frechet_distance(*(gaussian(side, 1) for side in sides))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_scores_do_not_know_the_batch(batch, one_device, reference):
    found = [extract(one_device, clips(seed), batch).features for seed in (0, 1)]
    np.testing.assert_array_equal(found[0], reference[0])
    assert distance(found) == pytest.approx(distance(reference), rel=1e-6) and distance(found) > 0


@pytest.mark.parametrize("num_devices", [2, 8])
def test_scores_do_not_know_the_devices(num_devices, reference):
    network = FeatureNetwork(thin_weights("i3d"), PROTOCOL, jax.devices()[:num_devices])
    found = [extract(network, clips(seed), 16).features for seed in (0, 1)]
    assert found[0].shape == (NUM, 400) and len(np.unique(found[0], axis=0)) == NUM
    np.testing.assert_allclose(found[0], reference[0], rtol=1e-5, atol=1e-6)
    assert distance(found) == pytest.approx(distance(reference), rel=1e-6)


def test_short_clips_are_left_out_and_counted(one_device, reference):
    found = extract(one_device, clips(0, short=(0, 4)), 3)
    assert found.num_short == 2 and len(found.features) == NUM - 2
    np.testing.assert_array_equal(extract(one_device, clips(0).subset([1, 2]), 2).features, reference[0][1:3])
    with pytest.raises(UserError, match=r"1 of 3 clips .* have the 9 frames .* \(the longest of them has 9\)"):
        extract(one_device, clips(0, num=3, short=(0, 1)), 2)


def test_the_real_side_is_kept_by_all_that_it_depends_on(one_device, reference, tmp_path):
    folder, media = tmp_path / "cache", clips(0)
    first = cached_features(one_device, media, folder, 5)
    (kept,) = folder.iterdir()

    def never(i: int, most: int | None) -> np.ndarray:
        raise AssertionError("read again")

    unread = dataclasses.replace(media, read=never)
    second = cached_features(one_device, unread, folder, 5)
    for found in (first, second):
        np.testing.assert_array_equal(found.features, reference[0])
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(cached_features(one_device, media, folder, 5).features, reference[0])
    cached_features(one_device, clips(1), folder, 5)
    assert len(list(folder.iterdir())) == 2
    np.testing.assert_array_equal(cached_features(one_device, media, None, 5).features, reference[0])


def test_a_set_is_thinned_evenly():
    media = clips(0)
    assert media.at_most(None) is media and media.at_most(11) is media
    assert media.at_most(3).names == ("0/0", "0/5", "0/10") and media.at_most(3).fingerprint != media.fingerprint


def test_a_folder_is_a_set_of_its_files_bytes(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    write_video(tmp_path / "b.png", pixels[:1], 1)
    write_video(tmp_path / "a" / "clip.mp4", pixels, 8)
    (tmp_path / "notes.txt").write_text("left out")
    media = open_media(tmp_path, "heldout")
    assert media.names == ("a/clip.mp4", "b.png") and media.read(0, None).shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(media.read(1, 5), pixels[:1])
    assert len(media.read(0, 2)) == 2 and open_media(tmp_path, "train").fingerprint == media.fingerprint
    write_video(tmp_path / "b.png", pixels[1:2], 1)
    assert open_media(tmp_path, "heldout").fingerprint != media.fingerprint
    with pytest.raises(UserError, match="nowhere is not a folder: name clip shards"):
        open_media(tmp_path / "nowhere", "heldout")


def test_weights_of_another_network_are_an_error():
    with pytest.raises(UserError, match="protocol google needs i3d, --weights is inception"):
        FeatureNetwork(thin_weights("inception"), PROTOCOLS["google"])
