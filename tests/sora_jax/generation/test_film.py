"""Long videos from a run: written as they come; storyboards, clips that go on, drafts that are refined."""

import json

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.video_io import decode, write_video
from sora_jax.commands.main import main
from sora_jax.generation.upscale import note_of
from tests.sora_jax.diffusion.tiny_sampler import clip

FAST = {"steps": 2, "guidance": 1.0, "size": "32x32"}
FLAGS = ("--steps", "2", "--guidance", "1", "--size", "32x32")


def command(capsys, *words: object) -> dict:
    code = main(["sample", *map(str, words)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out.strip().splitlines()[-1])


def frames_of(film) -> np.ndarray:
    return np.stack(list(film.frames))


def test_a_film_is_as_long_as_asked_and_begins_as_a_shorter_one(generator, random_run, tmp_path, capsys):
    line = command(
        capsys, "--run", random_run, "--prompt", "a red ball", *FLAGS, "--window", 0, "--frames", 22,
        "--out", tmp_path / "a.mp4",
    )  # fmt: skip
    assert (line["frames"], line["window"], line["overlap"]) == (22, 9, 4) and len(decode(tmp_path / "a.mp4")[0]) == 22
    film = generator.film("a red ball", frames=22, **FAST)
    film.save(tmp_path / "b.mp4")
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()
    longer, shorter = (frames_of(generator.film("a red ball", frames=n, **FAST)) for n in (14, 10))
    np.testing.assert_array_equal(longer[:10], shorter)


def test_a_storyboard_is_one_clip(generator, tmp_path):
    write_video(tmp_path / "key.png", clip(1, 32, 32), 8.0)
    (tmp_path / "story.yaml").write_text(
        "- {at: 0, prompt: a red ball}\n- {at: 1, prompt: a blue cube, image: key.png}\n"
        "- {at: 2, prompt: a blue cube, cut: true}\n"
    )
    film = generator.film(storyboard=tmp_path / "story.yaml", frames=20, **FAST)
    frames = frames_of(film)
    assert frames.shape == (20, 32, 32, 3) and [shot["cut"] for shot in film.about["shots"]] == [False, False, True]
    np.testing.assert_array_equal(frames[8], clip(1, 32, 32)[0])
    with pytest.raises(UserError, match="begins with frame 16, but the film has 16"):
        generator.film(storyboard=tmp_path / "story.yaml", frames=16, **FAST)
    with pytest.raises(UserError, match="--image does not go with --storyboard"):
        generator.film(storyboard=tmp_path / "story.yaml", image=tmp_path / "key.png", **FAST)


def test_a_clip_goes_on_and_is_led_to(generator, tmp_path):
    write_video(tmp_path / "clip.gif", clip(11, 32, 32), 8.0)
    source = decode(tmp_path / "clip.gif")[0]
    of_clip = {"video": tmp_path / "clip.gif", "frames": 9, **FAST}
    forward, backward = (frames_of(generator.film("a ball", extend=e, **of_clip)) for e in ("forward", "backward"))
    assert len(forward) == len(backward) == 20
    np.testing.assert_array_equal(forward[:11], source)
    np.testing.assert_array_equal(backward[9:], source)
    with pytest.raises(UserError, match="--loop does not go with --window"):
        generator.film("a ball", video=tmp_path / "clip.gif", loop=True, **FAST)


def test_a_draft_is_refined_by_what_is_noted_beside_it(random_run, tmp_path, capsys):
    of_run, small, large = ("--run", random_run), tmp_path / "small.mp4", tmp_path / "large.mp4"
    what = ("--prompt", "a red ball", *FLAGS, "--frames", 5, "--seed", 4)
    line = command(capsys, *of_run, *what, "--draft", "--out", small)
    assert line["size"] == "16x16" and line["upscale"]["size"] == "32x32"
    assert f"--upscale {small}" in line["upscale"]["command"] and json.loads(note_of(small).read_text()) == line
    refined = command(capsys, *of_run, "--upscale", small, "--out", large)
    assert (refined["size"], refined["prompt"], refined["seed"], refined["steps"]) == ("32x32", "a red ball", 4, 2)
    assert refined["strength"] == 0.6 and decode(large)[0].shape == (5, 32, 32, 3)
    at_once = command(capsys, *of_run, *what, "--draft", "--upscale", tmp_path / "s.mp4", "--out", tmp_path / "l.mp4")
    assert at_once["draft"] == str(tmp_path / "s.mp4") and (tmp_path / "l.mp4").read_bytes() == large.read_bytes()
    note_of(small).unlink()
    for words, message in (
        (("--upscale", small), "give its --prompt"),
        (("--upscale", small, "--prompt", "a ball"), "give --size"),
        (("--upscale", small, "--window", 9), "are of one canvas"),
        ((), "say what to show"),
    ):
        assert main(["sample", *map(str, (*of_run, *words, "--out", large))]) == 2
        assert message in capsys.readouterr().err
