"""Prompts in, names of files out."""

import pytest

from data_pipeline.errors import UserError
from sora_jax.generation.files import name_of, read_prompts


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


def test_files_are_named_after_their_prompts():
    names = [name_of("slug", prompt, n, 0, "mp4") for n, prompt in enumerate(("A red, red circle!", "赤い円"))]
    assert names == ["a-red-red-circle-0000.mp4", "prompt-0001.mp4"]
