"""The probes against worlds whose truth is known: plain, as video files, blurred; and what they must not see."""

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from data_pipeline.errors import UserError
from data_pipeline.synthetic.captions import captions
from data_pipeline.synthetic.render import render
from data_pipeline.synthetic.worlds import draw_scene
from data_pipeline.video_io import decode, encode_video
from sora_jax.evaluation.obedience import chance, judge_video, tally
from sora_jax.evaluation.probes import heading, judge, match, probe_video
from sora_jax.evaluation.prompts import Claim, Vocabulary, parse_prompt, vocabulary_of

NUM_CLIPS = {"quickstart": 90, "demo": 45}


@cache
def _world(name: str) -> tuple[list, list[tuple[str, str]]]:
    """(frames, (short, long caption)) of the first clips of a world."""
    scenes = [draw_scene(name, 3, index) for index in range(NUM_CLIPS[name])]
    texts = [captions(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    return [render(scene)[0] for scene in scenes], [(short, long) for (short, _), (long, _) in texts]


def _vocabulary(name: str) -> Vocabulary:
    return vocabulary_of(claim for pair in _world(name)[1] for text in pair for claim in parse_prompt(text))


def _through_a_file(frames: np.ndarray) -> np.ndarray:
    return decode(encode_video(frames, 8.0, "mp4", full_chroma=True))[0]


def _blurred(frames: np.ndarray) -> np.ndarray:
    """About what a weak autoencoder leaves: soft edges and noise of 8 grey values."""
    noise = np.random.default_rng(0).normal(scale=8, size=frames.shape)
    return np.clip(gaussian_filter(frames.astype(float), (0.3, 0.8, 0.8, 0)) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", [np.asarray, _through_a_file, _blurred])
@pytest.mark.parametrize("world", ["quickstart", "demo"])
def test_real_clips_obey_their_captions(world, change):
    frames, texts = _world(world)
    judged = [
        judge_video(pair[i % 2], change(f), _vocabulary(world))
        for i, (f, pair) in enumerate(zip(frames, texts, strict=True))
    ]
    shares = tally(judged)
    assert all(shares[name].rate >= 0.98 for name in ("colour", "shape", "direction")), shares
    assert shares["all"].num_total == NUM_CLIPS[world]


@pytest.mark.parametrize("world", ["quickstart", "demo"])
def test_short_and_long_captions_claim_what_the_scene_is(world):
    for index, (short, long) in enumerate(_world(world)[1]):
        scene = draw_scene(world, 3, index)
        still = scene.num_frames == 1
        truth = tuple(Claim(b.colour, b.shape, None if still else b.direction) for b in scene.bodies)
        assert parse_prompt(short) == truth == parse_prompt(long)


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("a red circle moves left", [Claim("red", "circle", "left")]),
        ("A Blue Square is moving upwards in front of darkness.", [Claim("blue", "square", "up")]),
        ("a red star stays still", [Claim("red", "star", "still")]),
        ("a red star moves up and to the left", [Claim("red", "star")]),
        ("a red circle. The camera pans to the left.", [Claim("red", "circle")]),
        ("a red circle and a blue star collide", [Claim("red", "circle"), Claim("blue", "star")]),
        (
            "a red circle moves left and a blue star moves up",
            [Claim("red", "circle", "left"), Claim("blue", "star", "up")],
        ),
        ("put the mug on the table", []),
    ],
)
def test_prompts(text, claims):
    assert list(parse_prompt(text)) == claims


def test_the_wrong_prompt_is_not_obeyed():
    """A caption with one word exchanged fails in that word alone."""
    frames, texts = _world("quickstart")
    i = next(i for i, (short, _) in enumerate(texts) if short == "a red circle moves left")
    vocabulary = _vocabulary("quickstart")
    for wrong, attribute in [
        ("blue circle moves left", "colour"),
        ("red square moves left", "shape"),
        ("red circle moves up", "direction"),
    ]:
        (verdict,) = judge_video(f"a {wrong}", frames[i], vocabulary).verdicts
        assert {name for name, correct in verdict.items() if not correct} == {attribute}


def test_an_empty_video_obeys_nothing():
    frames = np.full((5, 32, 32, 3), 40, np.uint8)
    judged = judge_video("a red circle moves left", frames, _vocabulary("quickstart"))
    assert judged.objects == (None,) and not judged.obeyed
    assert [row["observed"] for row in judged.as_rows()] == [None, None, None]


def test_noise_obeys_at_chance_at_most():
    rng = np.random.default_rng(1)
    texts = [short for short, _ in _world("quickstart")[1]]
    noise = [rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8) for _ in texts]
    shares = tally(
        judge_video(text, video, _vocabulary("quickstart")) for text, video in zip(texts, noise, strict=True)
    )
    assert shares["all"].rate < 0.1 and shares["colour"].rate < 0.45


def test_a_mirrored_video_moves_the_other_way():
    frames, _ = _world("quickstart")
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up", "still": "still"}
    for video in frames[:30]:
        (seen,), (turned,) = (probe_video(v, _vocabulary("quickstart")) for v in (video, video[:, ::-1, ::-1]))
        assert turned.direction == opposite[seen.direction] and turned.colour == seen.colour


@pytest.mark.parametrize(
    ("track", "direction"),
    [
        ([(5, 5), (9, 5), (14, 6)], "right"),
        ([(5, 9), (5, 5), (5, 2)], "up"),
        ([(5, 5), (12, 5), (20, 5), (11, 5), (1, 5)], "right"),  # bounces back past its start
        ([(5, 5), (5.4, 5), (4.8, 5.3)], "still"),
        ([(5, 5)], "still"),
    ],
)
def test_heading(track, direction):
    assert heading(np.array(track, float)) == direction


def test_claims_are_matched_in_the_best_way():
    claims = (Claim("red", "circle", "left"), Claim("blue", "star", "up"))
    assert match(claims, claims[::-1]) == list(claims)
    assert match(claims, claims[1:]) == [None, claims[1]]
    # with one claim only the largest thing counts: another one of the right colour does not help
    assert judge(claims[1:], match(claims[1:], claims)) == [{"colour": False, "shape": False, "direction": False}]


def test_chance_is_one_over_the_number_of_values():
    world = [
        (Claim(c, s, d),)
        for c in ("red", "blue")
        for s in ("circle", "star", "square")
        for d in ("left", "up", "down", "right")
    ]
    expected = {"colour": 1 / 2, "shape": 1 / 3, "direction": 1 / 4, "all": 1 / 24}
    assert chance(world, world) == pytest.approx(expected)
    assert chance([(Claim("red", "circle"),)], world)["direction"] is None


def test_colours_without_a_hue_are_refused():
    with pytest.raises(UserError, match="white has none"):
        probe_video(np.zeros((1, 8, 8, 3), np.uint8), Vocabulary(colours=("red", "white")))
