"""Known tokens are held bitwise, a canvas is what its clip encodes to, and SDEdit meets both of its ends."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.diffusion.generation import Request
from sora_jax.diffusion.prompting import Canvas, Piece, encode_window, latent_of, lay, lay_masked, unmasked_tokens
from tests.sora_jax.diffusion.tiny_sampler import CHANNELS, LAYOUT, clip, make_codec, make_sampler, sample

SHAPE = (3, 2, 2)  # 9 frames of 16x16


def request(canvas: Canvas | None = None, prompt: str = "a red ball", seed: int = 3) -> Request:
    return Request(prompt, 16, 16, 9, 8.0, seed, canvas)


def test_a_prefix_on_a_canvas_is_the_encoding_of_the_clip_that_it_starts():
    codec, frames = make_codec(), clip(9)
    canvas = lay(codec, LAYOUT, SHAPE, [Piece(frames[:5], 0)])
    whole = codec.normalise(codec.encode(frames[None])[0])
    np.testing.assert_allclose(canvas.latents[:2], whole[:2], atol=1e-5)
    assert canvas.known[:2].all() and not canvas.known[2:].any() and not canvas.latents[2:].any()


def test_a_piece_further_on_is_a_window_of_its_own_without_its_first_latent():
    codec, frames = make_codec(), clip(4)
    canvas = lay(codec, LAYOUT, SHAPE, [Piece(frames, 5)])
    window = codec.normalise(codec.encode(np.concatenate([frames[:1], frames])[None])[0])
    assert np.array_equal(canvas.latents[2], window[1]) and canvas.known[2].all() and not canvas.known[:2].any()
    # All of the source is in that latent: another last frame gives another latent.
    changed = frames.copy()
    changed[-1] = 255 - changed[-1]
    assert not np.allclose(encode_window(codec, changed, is_first=False), window[1:], atol=1e-3)


def test_frames_and_the_latents_that_code_them():
    assert [latent_of(make_codec(), frame) for frame in range(10)] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(4, 0)], r"4 known frames start the canvas, but 1 \+ 4 n can: give 1"),
        ([(4, 2)], "do not fill latents of 4 frames"),
        ([(3, 1)], "do not fill latents of 4 frames"),
        ([(13, 0)], "13 known frames from frame 0 on do not fit a canvas of 9 frames"),
        ([(4, 9)], "do not fit a canvas of 9 frames"),
        ([(5, 0), (4, 1)], "two conditions both lie on frame 1"),
        ([(9, 0)], "all 12 tokens of the canvas are known"),
    ],
)
def test_pieces_that_do_not_lie_on_a_canvas(pieces, message):
    with pytest.raises(UserError, match=message):
        lay(make_codec(), LAYOUT, SHAPE, [Piece(clip(count), start) for count, start in pieces])


def test_a_piece_of_another_size_and_a_strength_out_of_range():
    with pytest.raises(UserError, match="known frames are 24x16, but the canvas is 16x16"):
        lay(make_codec(), LAYOUT, SHAPE, [Piece(clip(1, 16, 24), 0)])
    for strength in (0.0, 1.01, float("nan")):
        with pytest.raises(UserError, match="strength is"):
            lay(make_codec(), LAYOUT, SHAPE, [], strength)


def test_a_token_is_known_if_none_of_its_pixels_is_masked():
    masked = np.zeros((9, 32, 32), bool)
    masked[6, 17, 30] = True
    layout = dataclasses.replace(LAYOUT, patch_size=(1, 2, 2))
    known = unmasked_tokens(make_codec(), layout, masked)
    assert known.shape == (3, 2, 2) and np.argwhere(~known).tolist() == [[2, 1, 1]]
    assert np.argwhere(~unmasked_tokens(make_codec(), LAYOUT, masked)).tolist() == [[2, 2, 3]]


def test_known_tokens_of_a_result_are_the_given_latents_bitwise():
    masked = np.zeros((9, 16, 16), bool)
    masked[:, 8:, :8] = True
    canvas = lay_masked(make_codec(), LAYOUT, clip(9), masked)
    (result,) = sample([request(canvas)])
    assert canvas.known.sum() == 9 and np.array_equal(result[canvas.known], canvas.latents[canvas.known])
    assert not np.allclose(result[~canvas.known], canvas.latents[~canvas.known], atol=0.1)


def test_what_is_known_reaches_what_is_made():
    one, other = (lay(make_codec(), LAYOUT, SHAPE, [Piece(clip(5, seed=seed), 0)]) for seed in (0, 1))
    first, second = sample([request(one), request(other)])
    assert not np.allclose(first[2], second[2], atol=1e-3)


def test_sdedit_ends_at_the_source_for_no_strength_and_is_plain_sampling_at_full_strength():
    nothing = np.ones((9, 16, 16), bool)
    weak, half, full = (lay_masked(make_codec(), LAYOUT, clip(9), nothing, s) for s in (1e-5, 0.5, 1.0))
    of_weak, of_half, of_full, plain = sample([request(c) for c in (weak, half, full, None)])
    np.testing.assert_allclose(of_weak, weak.latents, atol=1e-3)
    assert np.array_equal(of_full, plain)
    distances = [np.abs(result - weak.latents).mean() for result in (of_weak, of_half, of_full)]
    assert distances[0] < distances[1] < distances[2]


def test_a_sample_is_the_same_alone_and_beside_others():
    nothing = np.ones((9, 16, 16), bool)
    canvases = [
        lay(make_codec(), LAYOUT, SHAPE, [Piece(clip(1), 0), Piece(clip(4, seed=1), 5)]),
        None,
        lay_masked(make_codec(), LAYOUT, clip(9, seed=2), nothing, 0.6),
    ]
    requests = [
        request(c, p, seed) for seed, (c, p) in enumerate(zip(canvases, ("a", "red ball", "left"), strict=True))
    ]
    for together, one in zip(sample(requests), requests, strict=True):
        (alone,) = sample([one])
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_canvas_of_another_shape_than_its_request_is_an_error():
    canvas = Canvas(np.zeros((2, 2, 2, CHANNELS), np.float32), np.zeros((2, 2, 2), bool))
    with pytest.raises(UserError, match=r"latents of shape \(2, 2, 2\), but the video needs \(3, 2, 2\)"):
        make_sampler()[0].num_tokens(request(canvas))
