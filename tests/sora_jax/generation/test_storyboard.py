"""Storyboards: strict, with the line and the field of what is wrong."""

import pytest

from data_pipeline.errors import UserError
from sora_jax.generation.storyboard import Scene, read_storyboard

GOOD = """
- at: 0
  prompt: a red ball
  image: first.png
- {at: 2.5, prompt: "blue: a ball"}
- at: 4
  prompt: green
  cut: true
"""


def test_shots_are_read_in_order(tmp_path):
    path = tmp_path / "story.yaml"
    path.write_text(GOOD)
    assert read_storyboard(path) == [
        Scene(0.0, "a red ball", str(tmp_path / "first.png")),
        Scene(2.5, "blue: a ball"),
        Scene(4.0, "green", cut=True),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a list of shots"),
        ("at: 0\nprompt: a", "must be a list of shots"),
        ("- at: 0\n  prompt: [", "is no YAML: .*line 2"),
        ("- red", r"story.yaml:1: shot 1 must have fields"),
        ("- at: 0\n  promt: a", r"story.yaml:2: shot 1 has a field 'promt', which is none of at, prompt, image, cut"),
        ("- at: 0\n  prompt: a\n  prompt: b", r"story.yaml:3: shot 1 has 'prompt' twice"),
        ("- at: 0\n  prompt: a\n- at: soon\n  prompt: b", r"story.yaml:3: shot 2: at is 'soon', but must be a time"),
        ("- at: true\n  prompt: a", "at is True, but must be a time"),
        ("- at: 0\n  prompt: 5", "prompt is 5, but must be text; put it in quotes"),
        ("- at: 0\n  prompt: a\n  cut: 1", "cut is 1, but must be true or false"),
        ("- at: 0", r"story.yaml:1: shot 1 has no prompt"),
        ("- image: a.png", "has no at and no prompt"),
        ("- {at: 1, prompt: a}", "begins at 1 s, but the first must begin at 0"),
        ("- {at: .nan, prompt: a}", "begins at nan s"),
        ("- {at: 0, prompt: a}\n- {at: 0, prompt: b}", r"story.yaml:2: shot 2 begins at 0 s, but the one before it"),
        ("- {at: 0, prompt: !!python/object:os.system x}", "is no YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, message):
    (tmp_path / "story.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_storyboard(tmp_path / "story.yaml")
    with pytest.raises(UserError, match="cannot read the storyboard"):
        read_storyboard(tmp_path / "absent.yaml")
