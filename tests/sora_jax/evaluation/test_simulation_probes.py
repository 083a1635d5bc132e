"""Every story of the simulation world is judged true, its forgetful twin is not, nor are frames that break its law."""

import numpy as np

from data_pipeline.synthetic.simulation import KINDS, draw_story, render_story
from sora_jax.evaluation.simulation_probes import forgetful, judge, rates


def test_true_stories_hold_and_forgetful_ones_do_not():
    stories = [draw_story(3, i) for i in range(8 * len(KINDS))]
    clips = [(story.caption, render_story(story)) for story in stories]
    assert all(rate.rate >= 7 / 8 for rate in rates(clips).values()), rates(clips)
    chances = rates(forgetful(clips))
    assert set(chances) == set(KINDS) and all(rate.rate <= 1 / 4 for rate in chances.values()), chances
    held = next(frames for prompt, frames in clips if prompt.startswith("orbit"))
    assert judge("orbit: still", np.repeat(held[:1], len(held), 0)) == ("orbit", False)  # flat: no parallax
    painted = next((prompt, frames) for prompt, frames in clips if prompt.startswith("paint"))
    assert judge(painted[0], np.concatenate([painted[1][:-1], painted[1][:1]])) == ("paint", False)  # it is gone
    assert judge("a red circle moves left", held) is None


def test_a_body_that_comes_back_slower_or_through_another_is_false():
    bounced, met = ((s.caption, render_story(s)) for s in (draw_story(5, 2), draw_story(5, 3)))
    assert judge(*bounced) == ("bounce", True) and judge(*met) == ("collision", True)
    turn = len(bounced[1]) * 2 // 3
    slow = bounced[1][np.r_[0:turn, np.repeat(np.arange(turn, len(bounced[1])), 2)][: len(bounced[1])]]
    assert judge(bounced[0], slow) == ("bounce", False)
    assert judge(met[0], np.repeat(met[1][:1], len(met[1]), 0)) == ("collision", False)
