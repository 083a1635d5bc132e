"""What `sora-jax sample` makes of its options, before a network is loaded."""

import argparse

import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.sample import make_requests, name_files, read_prompts


def test_prompts_are_lines_whatever_wrote_the_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red circle\r\n\n  two\u2028lines \nein Bär\x0ctanzt".encode())
    assert read_prompts(path) == ["a red circle", "two\u2028lines", "ein Bär\x0ctanzt"]
    path.write_bytes("ein B\xe4r".encode("latin-1"))
    with pytest.raises(UserError, match="cannot read prompts"):
        read_prompts(path)
    path.write_text("\n \n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_prompts(path)


def options(**changed) -> argparse.Namespace:
    return argparse.Namespace(**{"size": "64x48", "frames": 9, "fps": 12.0, "seed": 3, **changed})


def test_each_prompt_has_a_seed_of_its_own():
    requests = make_requests(["a", "b"], options(), {})
    assert [(r.prompt, r.width, r.height, r.num_frames, r.seed) for r in requests] == [
        ("a", 64, 48, 9, 3),
        ("b", 64, 48, 9, 4),
    ]
    assert make_requests(["a"], options(size=None, frames=None), {"width": 80, "num_frames": 17})[0].width == 80


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": "64"}, "--size is '64', but must be WIDTHxHEIGHT"),
        ({"size": "200000x200000"}, "200000x200000"),
        ({"frames": 10**7}, "10000000"),
        ({"seed": 2**31}, "--seed is 2147483648"),
    ],
)
def test_what_cannot_be_sampled_is_said_at_once(changed, message):
    with pytest.raises(UserError, match=message):
        make_requests(["a"], options(**changed), {})


def test_files_are_named_after_their_prompts(tmp_path):
    names = [path.name for path in name_files(tmp_path / "out", ["A red, red circle!", "赤い円"], "mp4")]
    assert names == ["a-red-red-circle-0000.mp4", "prompt-0001.mp4"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file or lies below one"):
        name_files(tmp_path / "file" / "out", ["a"], "mp4")
