"""Sliding windows: exactly the frames asked for, overlaps as they were sampled, prefixes, key frames, new shots."""

from itertools import islice, pairwise

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.diffusion import denoiser
from sora_jax.diffusion.generation import PackedSampler, Request
from sora_jax.generation import windows as windows_module
from sora_jax.generation.windows import Shot, Windows, frames_before, window_seed
from tests.sora_jax.diffusion.tiny_sampler import FAST, clip, make_sampler

BASE = Request("", 16, 16, 1, 8.0, seed=3)
RED, BLUE = Shot(0, "a red ball moves left"), Shot(14, "a ball moves")


def make(latents: int = 5, overlap: int = 2, base: Request = BASE) -> Windows:
    sampler, params = make_sampler()
    return Windows(sampler, params, {}, FAST, base, latents, overlap)


def take(frames, count: int) -> np.ndarray:
    return np.stack(list(islice(frames, count)))


@pytest.fixture
def sampled(monkeypatch) -> list[tuple[Request, np.ndarray]]:
    """Every window that the real sampler makes: its request and its latents."""
    made, sample = [], PackedSampler.sample

    def kept(self, params, frozen, requests, sampling, rows_per_batch=8):
        for number, latents in sample(self, params, frozen, requests, sampling, rows_per_batch):
            made.append((requests[number], latents))
            yield number, latents

    monkeypatch.setattr(PackedSampler, "sample", kept)
    return made


def test_windows_go_on_from_the_same_latents(sampled):
    """Four windows: 17 frames, then twice 8, and the beginning of the next; each overlap is the last one's, bitwise."""
    programs = denoiser.sample_rows._cache_size()
    frames = take(make().frames([RED]), 36)
    assert denoiser.sample_rows._cache_size() <= programs + 2  # without known tokens or with: never one a window
    assert frames.shape == (36, 16, 16, 3) and len(sampled) == 4
    for (_, before), (request, after) in pairwise(sampled):
        np.testing.assert_array_equal(after[1:3], before[-2:])
        assert request.canvas.known[:3].all() and not request.canvas.known[3:].any()
    assert len({request.seed for request, _ in sampled}) == 4
    stream = np.concatenate([sampled[0][1], *(latents[3:] for _, latents in sampled[1:])])
    whole = np.concatenate(list(make().sampler.decode([stream])))
    assert np.abs(whole[:36].astype(int) - frames).max() <= 1  # decoded in one stream: no window shows


def test_a_longer_video_begins_as_a_shorter_one():
    longer, shorter = take(make().frames([RED]), 40), take(make().frames([RED]), 21)
    np.testing.assert_array_equal(longer[:21], shorter)
    other = take(make(base=Request("", 16, 16, 1, 8.0, seed=4)).frames([RED]), 21)
    assert not np.array_equal(other, shorter)
    assert not np.array_equal(take(make().frames([RED], part=1), 3), shorter[:3])


def test_no_more_is_kept_however_long_it_takes(monkeypatch):
    streams, init = [], windows_module._Stream.__init__
    monkeypatch.setattr(
        windows_module._Stream, "__init__", lambda self, *args: (init(self, *args), streams.append(self))[0]
    )
    for number, _ in enumerate(islice(make().frames([RED]), 60)):
        assert len(streams[0].tail) <= 2 and len(streams[0].recent) <= 9
        assert streams[0].length <= 5 + number // 4 + 2  # and no window is made before its frames are asked for


def test_a_video_goes_on_from_known_frames(sampled):
    source = clip(9)
    frames = take(make().frames([RED], head=source), 25)
    np.testing.assert_array_equal(frames[:9], source)
    assert sampled[0][0].canvas.known[:3].all() and not sampled[0][0].canvas.known[3:].any()


def test_a_shot_begins_at_its_time_with_its_image(sampled):
    """Frame 14 lies in latent 4: the first window ends there, and the next follows the other prompt."""
    still = clip(1, seed=5)[0]
    plain = take(make().frames([RED, BLUE]), 30)
    prompts = [request.prompt for request, _ in sampled]
    assert prompts == [RED.prompt, *[BLUE.prompt] * 3]  # frame 29 lies in latent 8
    np.testing.assert_array_equal(sampled[1][1][1:3], sampled[0][1][2:4])
    sampled.clear()
    shots = [Shot(0, RED.prompt, clip(1)[0]), Shot(14, BLUE.prompt, still)]
    shown = take(make().frames(shots), 30)
    np.testing.assert_array_equal(shown[0], clip(1)[0])
    np.testing.assert_array_equal(shown[14], still)
    assert not np.array_equal(shown[13], still) and not np.array_equal(shown, plain)
    assert [request.canvas.known[:, 0, 0].tolist() for request, _ in sampled] == [
        [True, False, False, False, True],  # towards the image at latent 4
        [True, True, True, False, False],
        [True, True, True, False, False],
    ]
    np.testing.assert_array_equal(sampled[1][1][1:3], sampled[0][1][3:5])


def test_what_leads_to_a_video_ends_with_a_shorter_lead():
    source = clip(9)
    longer, shorter = (take(frames_before(make(), RED.prompt, source, n), n + 1) for n in (20, 7))
    assert len(longer) == 20 and len(shorter) == 7
    np.testing.assert_array_equal(longer[-7:], shorter)
    assert not np.array_equal(take(frames_before(make(), RED.prompt, source[:1], 7), 7), shorter)


def test_bad_windows_are_one_clear_error():
    for latents, overlap in ((5, 0), (5, 4), (2, 1)):
        with pytest.raises(UserError, match="the overlap must be from 4 to"):
            make(latents, overlap)
    for start in (0, 1, 14):
        shots = [RED, BLUE, Shot(start, "a ball")]
        with pytest.raises(UserError, match="within different groups of 4 frames"):
            take(make().frames(shots), 1)
    assert window_seed(3, 0, 0) == 3 and 0 <= window_seed(3, 0, 1) < 2**31
