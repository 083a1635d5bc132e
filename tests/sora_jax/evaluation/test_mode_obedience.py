"""The truth obeys in every mode and is where it must be; holding still is not, and what is changed is noticed."""

import jax
import numpy as np
import pytest

from data_pipeline.packing import RowLayout
from data_pipeline.synthetic.captions import captions
from data_pipeline.synthetic.render import render
from data_pipeline.synthetic.worlds import draw_scene
from sora_jax.evaluation.mode_obedience import BEHIND, Case, held, judge_case, make_cases, tally
from sora_jax.evaluation.prompts import parse_prompt, vocabulary_of
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.layers import initialise

SAME_PROMPT = ("animate", "key frames", "forward", "backward", "connect")


def _clips(behind: bool, count: int) -> list[tuple[np.ndarray, str]]:
    scenes = (draw_scene("quickstart", 3, i, size=(32, 32), frames=9) for i in range(400))
    chosen = [scene for scene in scenes if (scene.occluder is not None) == behind][:count]
    rng = np.random.default_rng(0)
    return [(render(scene)[0], captions(scene, rng)[0][0]) for scene in chosen]


@pytest.fixture(scope="module")
def codec() -> Codec:
    config = AutoencoderConfig(latent_channels=4, patch_size=4, stages=(Stage(1, 2, 8, 1), Stage(2, 2, 8, 1)))
    params = initialise(lambda rngs: VideoAutoencoder(config, rngs), jax.random.key(0))
    return Codec(config, params, np.zeros(4, np.float32), np.ones(4, np.float32))


@pytest.fixture(scope="module")
def cases(codec: Codec) -> list[Case]:
    layout = RowLayout(96, 64, 4, (1, 1, 1), 4, 2.0)
    clips = _clips(False, 6) + _clips(True, 4)
    words = vocabulary_of(claim for _, text in clips for claim in parse_prompt(text))
    return [case for clip, text in clips for case in make_cases(codec, layout, clip, text, 8.0, words)]


@pytest.fixture(scope="module")
def vocabulary(cases: list[Case]):
    return vocabulary_of(claim for case in cases for claim in parse_prompt(case.prompt))


def test_every_mode_is_there_with_and_without_a_bar(cases):
    plain = {"text", *SAME_PROMPT}
    assert {case.mode for case in cases} == plain | {"loop", "edit", "inpaint"} | {
        f"{mode}, {BEHIND}" for mode in plain
    }


def test_the_truth_obeys_and_is_where_it_must_be(cases, vocabulary):
    verdicts = [
        judge_case(c, c.truth, vocabulary) for c in cases if c.truth is not None and c.mode.startswith(SAME_PROMPT)
    ]
    found = tally(verdicts)
    assert len(verdicts) == 50
    assert found["place_px"] == 0
    assert all(found[name]["rate"] == 1 for name in ("colour", "shape", "direction", "place", "known_exact"))


def test_holding_still_keeps_what_is_known_and_is_in_the_wrong_place(cases, vocabulary):
    forward = [case for case in cases if case.mode.startswith(("forward", "backward"))]
    found = tally([judge_case(case, held(case), vocabulary) for case in forward])
    assert found["known_exact"]["rate"] == 1
    assert found["place"]["rate"] == 0


def test_a_loop_that_comes_back_has_no_seam_and_one_that_holds_has(cases, vocabulary):
    for case in (case for case in cases if case.mode == "loop"):
        there_and_back = np.concatenate([case.truth[:5], case.truth[4:0:-1]])
        good, bad = (judge_case(case, frames, vocabulary) for frames in (there_and_back, case.truth))
        assert good.colour and good.direction and good.known_exact and good.place is None
        assert good.loop_ratio < 1.5 < bad.loop_ratio and bad.seam_ratio < 1.5


def test_a_loop_of_a_cycle_lasts_a_period_and_the_clip_is_its_truth(codec):
    layout, lengths = RowLayout(96, 64, 4, (1, 1, 1), 4, 2.0), set()
    for index in range(12):
        scene = draw_scene("cycles", 0, index, frames=21)
        clip, text = render(scene)[0], captions(scene, np.random.default_rng(0))[0][0]
        words = vocabulary_of(parse_prompt(text))
        (case,) = (case for case in make_cases(codec, layout, clip, text, 8.0, words) if case.mode == "loop")
        verdict, length = judge_case(case, clip[: len(case.truth)], words), len(case.truth)
        lengths.add(length)
        assert case.is_determined and case.result(np.zeros((case.num_frames, 32, 32, 3), np.uint8)).shape[0] == length
        assert verdict.colour and verdict.known_exact and verdict.place_px == 0 and verdict.loop_ratio < 1.5
    assert lengths == {13, 17}


def test_a_changed_pixel_of_the_known_frames_and_an_absent_object_are_noticed(cases, vocabulary):
    case = next(case for case in cases if case.mode == "forward")
    changed = case.truth.copy()
    changed[0, 0, 0, 0] ^= 1
    assert judge_case(case, changed, vocabulary).known_exact is False
    empty = judge_case(case, np.full_like(case.truth, 20), vocabulary)
    assert (empty.colour, empty.place, empty.place_px) == (False, False, 32.0)


def test_an_edit_asks_for_another_colour_at_the_same_place(cases, vocabulary):
    for case in (case for case in cases if case.mode in ("edit", "inpaint")):
        claims = parse_prompt(case.prompt)
        assert claims[0].colour != case.truth_colour
        source = judge_case(case, case.truth, vocabulary)
        assert not source.colour and source.shape is not None
