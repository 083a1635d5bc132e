"""The captioner's network: patches and their padding, who sees what, and captions of clips on any canvas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.models.captioner import Captioner, CaptionerConfig, apply, patchify, within
from sora_jax.models.codec import to_float
from sora_jax.models.layers import initialise

CFG = CaptionerConfig(
    vocab_size=19, patch=(2, 4, 4), stem=(6,), width=24, depth=1, num_heads=2, num_memory=3, text_width=16,
    text_depth=2, cross_depth=1, text_heads=2, vector_width=8,
)  # fmt: skip
EXTENTS = np.asarray([(4, 8, 8), (3, 8, 5), (1, 4, 8)], np.int32)


@functools.cache
def params():
    return jax.jit(lambda: initialise(lambda rngs: Captioner(CFG, rngs), jax.random.key(0)))()


@jax.jit
def run_with(params, video, extents, ids, segment_ids):
    return apply(CFG, params)(video, extents, ids, segment_ids)


def run(*args):
    return run_with(params(), *args)


def clips(canvas: tuple[int, int, int], noise: int = 0) -> np.ndarray:
    """The three clips of EXTENTS on a canvas; what they leave of it is `noise`."""
    video = np.full((len(EXTENTS), *canvas, 3), noise, np.uint8)
    for row, (frames, height, width) in enumerate(EXTENTS):
        pixels = np.random.default_rng(row).integers(0, 256, (frames, height, width, 3), np.uint8)
        video[row, :frames, :height, :width] = pixels
    return video


def test_patches_of_a_clip_come_first_and_keep_their_places():
    pixels = within(to_float(clips((4, 8, 8))), jnp.asarray(EXTENTS))
    patches, positions, segments = patchify(pixels, jnp.asarray(EXTENTS), CFG.patch)
    assert patches.shape == (3, 8, 96) and np.asarray(segments.sum(1)).tolist() == [8, 8, 2]
    assert (np.diff(segments, axis=1) <= 0).all()
    assert np.asarray(positions[2, :2]).tolist() == [[0, 0, 0], [0, 0, 1]]
    whole = np.asarray(patches[0, 3]).reshape(2, 4, 4, 3)  # the patch (0, 1, 1) of the first clip
    np.testing.assert_allclose(whole, clips((4, 8, 8))[0, :2, 4:, 4:] / 127.5 - 1, atol=1e-6)
    last = np.asarray(patches[2, 0]).reshape(2, 4, 4, 3)
    assert last[0].any() and not last[1].any()  # of a still the second frame is nothing


def test_neither_the_canvas_nor_what_is_outside_of_a_clip_counts():
    ids, live = jax.random.randint(jax.random.key(1), (3, 5), 0, 19), jnp.ones((3, 5), jnp.int32)
    small = run(clips((4, 8, 8)), EXTENTS, ids, live)
    large = run(clips((6, 8, 16), noise=77), EXTENTS, ids, live)
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_captions_vector_knows_the_text_alone_and_all_of_it():
    ids, live = jax.random.randint(jax.random.key(1), (3, 5), 0, 19), jnp.asarray([[1, 1, 1, 1, 0]] * 3)
    video = clips((4, 8, 8))
    first = run(video, EXTENTS, ids, live)
    np.testing.assert_allclose(jnp.linalg.norm(first.captions, axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(first.clips, axis=1), 1.0, atol=1e-4)
    other_clip = run(255 - video, EXTENTS, ids, live)
    np.testing.assert_allclose(first.captions, other_clip.captions, atol=1e-6)
    assert np.abs(first.logits - other_clip.logits).max() > 1e-3 < np.abs(first.clips - other_clip.clips).max()
    last_word = run(video, EXTENTS, ids.at[:, 3].set((ids[:, 3] + 1) % 19), live)
    padding = run(video, EXTENTS, ids.at[:, 4].set(7), live)
    assert np.abs(first.captions - last_word.captions).max() > 1e-3
    np.testing.assert_allclose(first.captions, padding.captions, atol=1e-6)
    np.testing.assert_allclose(first.logits[:, :3], last_word.logits[:, :3], atol=1e-6)  # nor does a token see it


def test_a_caption_is_what_the_whole_forward_pass_finds_likeliest():
    video = clips((4, 8, 8))
    caption = jax.jit(lambda params, video, extents: apply(CFG, params).caption(video, extents, 6, 2))
    found = caption(params(), video, EXTENTS)
    before = jnp.concatenate([jnp.full((3, 1), 2), found.ids[:, :-1]], axis=1)
    likeliest = np.argmax(run(video, EXTENTS, before, jnp.ones_like(before)).logits, axis=-1)
    for row, length in enumerate(np.asarray(found.lengths)):
        assert np.array_equal(found.ids[row, :length], likeliest[row, :length])
        assert length == 6 or likeliest[row, length] == 2


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(cross_depth=2), "below text_depth=2"),
        (dict(width=26), "width=26 over num_heads=2"),
        (dict(num_memory=0), "num_memory is 0"),
        (dict(patch=(0, 4, 4)), r"patch is \(0, 4, 4\)"),
        (dict(stem=(8, 8, 8)), "multiples of 8"),
        (dict(dtype="float64"), "float64"),
        (dict(text_width=18, text_heads=4), "text decoder"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        CaptionerConfig(**{**CFG.__dict__, **fields})
    with pytest.raises(UserError, match="4 frames of 9x8 does not divide"):
        CFG.grid(4, 8, 9)
