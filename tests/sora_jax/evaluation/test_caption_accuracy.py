"""What counts as right in a caption: matched objects, their number, and nothing invented."""

import pytest

from data_pipeline.records import Caption
from sora_jax.evaluation.caption_accuracy import accuracy, compare, true_claims
from sora_jax.evaluation.prompts import parse_prompt

TWO = "a red circle moves left and a blue square moves up"


@pytest.mark.parametrize(
    "truth, written, right, is_counted, is_exact",
    [
        ("a red circle moves left", "On darkness, a red circle moves to the left at a steady speed.", 3, True, True),
        ("a red circle moves left", "A red circle is moving to the right in front of darkness.", 2, True, False),
        ("a red circle moves left", "A small picture of a red circle on darkness.", 2, True, False),
        ("a red circle", "a red circle moves left", 2, True, False),  # it moves, which is invented
        ("a red circle moves left", "there is nothing", 0, False, False),
        (TWO, "a blue square moves up and a red circle moves left", 6, True, True),
        (TWO, "a blue square moves up", 3, False, False),
        ("a blue square moves up", TWO, 3, False, False),  # one too many
    ],
)
def test_objects_are_matched_and_counted(truth, written, right, is_counted, is_exact):
    found = compare(parse_prompt(truth), written)
    assert sum(sum(verdict.values()) for verdict in found.verdicts) == right
    assert (found.is_counted, found.is_exact) == (is_counted, is_exact)


def test_shares_are_over_the_true_claims():
    captions = ["a red circle moves left", "a red square moves left", "a blue circle"]
    truths = [
        parse_prompt("a red circle moves left"),
        parse_prompt("a red circle moves up"),
        parse_prompt("a blue circle"),
    ]
    found = accuracy(compare(truth, text) for truth, text in zip(truths, captions, strict=True))
    assert {name: (one.num_correct, one.num_total) for name, one in found.items()} == {
        "colour": (3, 3),
        "shape": (2, 3),
        "direction": (1, 2),
        "count": (3, 3),
        "all": (2, 3),
    }


def test_the_truth_is_the_first_caption_that_claims_something():
    captions = [Caption("a nice video", "human"), Caption(TWO, "short"), Caption("a red circle", "long")]
    assert true_claims(captions) == parse_prompt(TWO)
    assert true_claims(captions[:1]) == ()
