"""The Python API: what it makes is what the command line makes, and does not depend on company."""

import json
import re

import numpy as np
import pytest

import sora_jax
from data_pipeline.errors import UserError
from data_pipeline.video_io import decode
from sora_jax.commands.main import main
from sora_jax.generation.api import Generator

FAST = {"steps": 2, "guidance": 2.0}


def command(*words: object) -> int:
    return main(["sample", *map(str, words)])


def test_the_command_line_makes_what_python_makes(random_run, generator, tmp_path, capsys):
    flags = ("--steps", 2, "--guidance", 2, "--seed", 5, "--size", "48x32", "--frames", 5)
    assert command("--run", random_run, "--prompt", "a red ball", *flags, "--out", tmp_path / "a.mp4") == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    sample = generator.video("a red ball", seed=5, size=(48, 32), frames=5, **FAST)
    assert sample.frames.shape == (5, 32, 48, 3) and sample.fps == 8.0
    assert {**sample.save(tmp_path / "b.mp4"), "file": "a.mp4", "path": str(tmp_path / "a.mp4")} == line
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_mesh_makes_what_one_device_makes(random_run, generator, tmp_path, capsys):
    flags = ("--steps", 2, "--guidance", 2, "--seed", 3, "--mesh", "data=2,context=4")
    assert command("--run", random_run, "--prompt", "a red ball", *flags, "--out", tmp_path / "spread.png") == 0
    alone = generator.image("a red ball", seed=3, **FAST).frames
    assert np.abs(decode(tmp_path / "spread.png")[0].astype(int) - alone).max() <= 1 and alone.std() > 10


def test_several_frames_are_no_image_and_nothing_is_sampled_for_them(random_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Generator, "video", lambda *_, **__: pytest.fail("sampled before it is refused"))
    video = ("--prompt", "a ball", "--video", tmp_path / "any.mp4", "--extend", "forward")
    assert command("--run", random_run, *video, "--out", tmp_path / "a.png") == 2
    assert "is an image, but there are at least 2 frames" in capsys.readouterr().err


def test_a_batch_is_its_samples_one_by_one(generator):
    prompts = ["a red ball", "", "a blue cube moves left over the table"]
    together = dict(generator.batch(prompts, seed=3, frames=5, **FAST))
    assert sorted(together) == [0, 1, 2]
    for number, prompt in enumerate(prompts):
        alone = generator.video(prompt, seed=3 + number, frames=5, **FAST)
        assert np.abs(alone.frames.astype(int) - together[number].frames.astype(int)).max() <= 1
    assert generator.image("a red ball", **FAST).frames.shape == (1, 32, 32, 3)


def test_the_raw_parameters_are_another_model(random_run, generator):
    raw = sora_jax.Generator.from_run(random_run, ema=False)
    ours, theirs = (g.image("a red ball", **FAST).frames for g in (generator, raw))
    assert not np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"frames": 8}, "nearest legal number is 9"), ({"fps": 0.0}, "fps"), ({"solver": "rk45"}, "euler")],
)
def test_what_the_run_cannot_make_is_one_clear_error(generator, options, message):
    with pytest.raises(UserError, match=message):
        generator.video("a red ball", **options)


def test_the_readmes_example_runs(random_run, repository, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    short = code[1].replace("runs/by_hand/dit", str(random_run)).replace("frames=9", "frames=5, steps=1")
    exec(short.replace('"red")', '"red", steps=1)'), {})
    assert decode(tmp_path / "red.mp4")[0].shape == (5, 32, 32, 3) and decode(tmp_path / "blue.png")[0].shape[1:3] == (
        60,
        100,
    )
