"""What each mode puts on the canvas, and that its result is the source and the new frames, exactly."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.diffusion.prompting import encode_window
from sora_jax.generation import modes
from tests.sora_jax.diffusion.tiny_sampler import LAYOUT, clip, make_codec


def made(plan: modes.Plan) -> np.ndarray:
    """Frames that a canvas might have been decoded to."""
    return clip(plan.num_frames, seed=9)


def known_latents(plan: modes.Plan) -> list[int]:
    assert plan.canvas.known.reshape(len(plan.canvas.known), -1).std(axis=1).max() == 0
    return np.flatnonzero(plan.canvas.known[:, 0, 0]).tolist()


def same(a, b) -> bool:
    return np.array_equal(a, np.concatenate(b))


def test_forward_is_the_source_and_then_what_is_new():
    source = clip(11)
    plan = modes.extend_forward(make_codec(), LAYOUT, source, 3, context=7)
    assert plan.num_frames == 9 and known_latents(plan) == [0, 1]
    np.testing.assert_array_equal(plan.canvas.latents[:2], encode_window(make_codec(), source[-5:], is_first=True))
    assert same(plan.assemble(made(plan)), [source, made(plan)[5:8]])
    assert plan.seams == (11,) and plan.known_frames == ((0, 11),)


def test_backward_is_what_is_new_and_then_the_whole_source():
    source = clip(6)
    plan = modes.extend_backward(make_codec(), LAYOUT, source, 3, context=5)
    assert plan.num_frames == 9 and known_latents(plan) == [2]
    np.testing.assert_array_equal(plan.canvas.latents[2:], encode_window(make_codec(), source[:4], is_first=False))
    assert same(plan.assemble(made(plan)), [made(plan)[2:5], source])
    assert plan.seams == (3,) and plan.known_frames == ((3, 9),)


def test_backward_from_a_still_holds_it_for_a_latent_and_shows_it_once():
    plan = modes.extend_backward(make_codec(), LAYOUT, clip(1), 5, context=9)
    assert known_latents(plan) == [2] and same(plan.assemble(made(plan)), [made(plan)[:5], clip(1)])


def test_a_transition_lies_between_two_whole_clips():
    first, second = clip(7), clip(5, seed=1)
    plan = modes.connect(make_codec(), LAYOUT, first, second, 4, context=5)
    assert plan.num_frames == 13 and known_latents(plan) == [0, 1, 3]
    np.testing.assert_array_equal(plan.canvas.latents[:2], encode_window(make_codec(), first[-5:], is_first=True))
    np.testing.assert_array_equal(plan.canvas.latents[3:], encode_window(make_codec(), second[:4], is_first=False))
    assert same(plan.assemble(made(plan)), [first, made(plan)[5:9], second])
    assert plan.seams == (7, 11) and plan.known_frames == ((0, 7), (11, 16))


def test_a_loop_ends_where_its_source_begins():
    source = clip(7)
    plan = modes.loop(make_codec(), LAYOUT, source, 4, context=4)
    assert plan.num_frames == 9 and known_latents(plan) == [0, 2] and plan.loops
    np.testing.assert_array_equal(plan.canvas.latents[2:], encode_window(make_codec(), source[:4], is_first=False))
    assert same(plan.assemble(made(plan)), [source, made(plan)[1:5]]) and plan.seams == (7,)


def test_stills_appear_at_their_times_and_only_there():
    first, last = clip(1)[0], clip(1, seed=1)[0]
    plan = modes.animate(make_codec(), LAYOUT, [(last, 0.74), (first, 0.0)], 9, 8.0)
    assert known_latents(plan) == [0, 2] and plan.known_frames == ((0, 1), (6, 7)) and plan.seams == (1, 6, 7)
    held = encode_window(make_codec(), np.repeat(last[None], 4, axis=0), is_first=False)
    np.testing.assert_array_equal(plan.canvas.latents[2:], held)
    result, frames = plan.assemble(made(plan)), made(plan)
    frames[0], frames[6] = first, last
    np.testing.assert_array_equal(result, frames)


def test_an_edit_is_new_everywhere_and_as_long_as_its_source():
    plan = modes.edit(make_codec(), LAYOUT, clip(7), 0.5)
    assert plan.num_frames == 9 and plan.canvas.strength == 0.5 and known_latents(plan) == []
    np.testing.assert_array_equal(plan.assemble(made(plan)), made(plan)[:7])
    assert plan.known_frames == () and plan.autoencoder_psnr(made(plan)) is None


def test_inpainting_keeps_every_pixel_that_is_not_masked():
    source, masked = clip(9), np.zeros((9, 16, 16), bool)
    masked[5:, 3:9, 2:4] = True
    plan = modes.edit(make_codec(), LAYOUT, source, 1.0, masked)
    assert np.argwhere(~plan.canvas.known).tolist() == [[2, 0, 0], [2, 1, 0]]
    result = plan.assemble(made(plan))
    assert np.array_equal(result[~masked], source[~masked]) and np.array_equal(result[masked], made(plan)[masked])
    assert plan.known_frames == ((0, 5),) and plan.seams == ()


def test_inpainting_in_time_has_a_seam_at_each_side():
    masked = np.zeros((9, 16, 16), bool)
    masked[2:6] = True
    plan = modes.edit(make_codec(), LAYOUT, clip(9), 1.0, masked)
    assert known_latents(plan) == [0] and plan.seams == (2, 6) and plan.known_frames == ((0, 2), (6, 9))


def test_the_autoencoders_error_is_that_of_the_known_pixels_alone():
    plan = modes.extend_forward(make_codec(), LAYOUT, clip(5), 4, context=5)
    decoded = np.concatenate([clip(5), clip(4, seed=3)])
    assert plan.autoencoder_psnr(decoded) > 100
    decoded[0, :, :, 0] ^= 16
    np.testing.assert_allclose(plan.autoencoder_psnr(decoded), 10 * np.log10(255**2 / (16**2 / 15)), rtol=1e-6)
    masked = np.zeros((8, 16, 16), bool)
    masked[2] = True  # latent 1, of frames 1 to 4, is made anew
    plan, decoded = modes.edit(make_codec(), LAYOUT, clip(8), 1.0, masked), clip(9)
    decoded[1:5] ^= 16
    assert plan.autoencoder_psnr(decoded) > 100
    decoded[5:] ^= 16
    assert plan.autoencoder_psnr(decoded) < 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *a: modes.animate(*a, [(clip(1)[0], 1.2)], 9, 8.0), "1.2 s would be frame 10 at 8 fps, but .* has 9"),
        (lambda *a: modes.animate(*a, [(clip(1)[0], -0.2)], 9, 8.0), "choose a time from 0 to 1 s"),
        (lambda *a: modes.animate(*a, [(clip(1)[0], 0.2), (clip(1)[0], 0.5)], 9, 8.0), "within the same 4 frames"),
        (lambda *a: modes.animate(*a, [(clip(1)[0], 0.0)], 1, 8.0), "nothing is left to make"),
        (lambda *a: modes.loop(*a, clip(5), 6, 5), "6 new frames .* nearest legal number is 8"),
        (lambda *a: modes.edit(*a, clip(5), 1.0, np.zeros((5, 16, 16), bool)), "something white in it"),
        (lambda *a: modes.edit(*a, clip(5), 1.5), "strength is 1.5"),
    ],
)
def test_what_no_mode_can_make(make, message):
    with pytest.raises(UserError, match=message):
        make(make_codec(), LAYOUT)


def test_half_of_the_trained_window_is_known_and_the_rest_is_room():
    codec = make_codec()
    contexts = [(w, modes.default_context(codec, w, 1), modes.default_context(codec, w, 2)) for w in (1, 9, 17, 33)]
    assert contexts == [(1, 5, 1), (9, 5, 1), (17, 9, 5), (33, 17, 9)]
    rooms = [modes.room(codec, 17, 9, direction) for direction in ("forward", "backward", "between")]
    assert rooms == [8, 9, 4] and modes.room(codec, 1, 5, "forward") == 4
