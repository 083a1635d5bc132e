"""Every mode from files to files, through Python and the command line: what is known is the source's, exactly."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.video_io import decode, write_video
from sora_jax.commands.main import main
from sora_jax.generation.api import Generator, Sample
from sora_jax.generation.conditions import read_clip, read_still
from sora_jax.generation.options import SampleOptions
from tests.sora_jax.diffusion.tiny_sampler import clip

SIZE = (32, 32)
FAST = {"steps": 2, "guidance": 1.0, "fps": 8.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of 9 and 5 frames, a picture of another shape, and a mask whose left half is white."""
    folder = tmp_path_factory.mktemp("files")
    write_video(folder / "a.mp4", clip(9, 32, 32), 8.0)
    write_video(folder / "b.mp4", clip(5, 32, 32, seed=1), 8.0)
    write_video(folder / "p.png", clip(1, 40, 72, seed=2), 8.0)
    mask = np.zeros((1, 32, 32, 3), np.uint8)
    mask[:, :, :16] = 255
    write_video(folder / "mask.png", mask, 8.0)
    return folder


def shown(path: Path) -> np.ndarray:
    return read_clip(path, 8.0, SIZE, "crop")


def video(generator: Generator, **options) -> Sample:
    return generator.video("a red ball", **options, **FAST)


def test_a_still_is_animated(generator, files):
    sample = video(generator, image=files / "p.png")
    assert sample.frames.shape == (9, 32, 32, 3) and sample.about["known_frames"] == [[0, 1]]
    np.testing.assert_array_equal(sample.frames[0], read_still(files / "p.png", SIZE, "crop"))
    odd = video(generator, image=files / "p.png", size="30x27")
    np.testing.assert_array_equal(odd.frames[0], read_still(files / "p.png", (30, 27), "crop"))
    two = video(generator, image=[files / "p.png", files / "b.mp4"], at=[0.0, 1.0])
    np.testing.assert_array_equal(two.frames[8], shown(files / "b.mp4")[0])
    assert two.about["seams"] == [1, 8] and not np.array_equal(two.frames[1:8], sample.frames[1:8])


def test_a_clip_is_extended_window_after_window(generator, files):
    source = shown(files / "a.mp4")
    forward = video(generator, video=files / "a.mp4", extend="forward", frames=10)
    np.testing.assert_array_equal(forward.frames[:9], source)
    assert len(forward.frames) == 19 and forward.about["seams"] == [9] and forward.about["known_psnr"] > 0
    backward = video(generator, video=files / "a.mp4", extend="backward", frames=6)
    np.testing.assert_array_equal(backward.frames[6:], source)
    assert len(backward.frames) == 15 and backward.about["seams"] == [1, 6]
    assert backward.about["known_frames"] == [[6, 15]] and forward.about["known_frames"] == [[0, 9]]
    # The first window is the same, however long the whole: and it is filled where nothing is said.
    short = video(generator, video=files / "a.mp4", extend="forward")
    np.testing.assert_array_equal(short.frames, forward.frames[:13])
    assert len(video(generator, video=files / "a.mp4", extend="backward", context=8).frames) == 14
    odd = video(generator, video=files / "b.mp4", extend="backward", frames=3, size="30x27")
    np.testing.assert_array_equal(odd.frames[3:], read_clip(files / "b.mp4", 8.0, (30, 27), "crop"))


def test_loops_and_transitions_hold_both_ends(generator, files):
    a, b = shown(files / "a.mp4"), shown(files / "b.mp4")
    loop = video(generator, video=files / "a.mp4", loop=True)
    assert len(loop.frames) == 13 and loop.about["loops"] and np.array_equal(loop.frames[:9], a)
    joined = video(generator, video=files / "a.mp4", connect=files / "b.mp4")
    assert len(joined.frames) == 18 and joined.about["seams"] == [9, 13]
    assert np.array_equal(joined.frames[:9], a) and np.array_equal(joined.frames[13:], b)


def test_edits_follow_their_strength_and_masks_keep_the_rest(generator, files):
    source = shown(files / "a.mp4")
    weak, strong = (video(generator, video=files / "a.mp4", strength=s) for s in (0.01, 1.0))
    anew = generator.video("a red ball", frames=9, **FAST)
    np.testing.assert_array_equal(strong.frames, anew.frames)
    recoded = generator.run.sampler.codec.decode(generator.run.sampler.codec.encode(source[None]))[0]
    assert np.abs(weak.frames.astype(int) - recoded).mean() < np.abs(strong.frames.astype(int) - recoded).mean()
    painted = video(generator, video=files / "a.mp4", mask=files / "mask.png")
    assert np.array_equal(painted.frames[:, :, 16:], source[:, :, 16:])
    assert not np.array_equal(painted.frames[:, :, :16], source[:, :, :16])
    first = video(generator, video=files / "a.mp4", mask=files / "mask.png", frames=5)
    assert len(first.frames) == 5


def test_the_command_line_writes_what_was_known_into_the_manifest(random_run, files, tmp_path, capsys):
    words = ["sample", "--run", random_run, "--prompt", "a red ball", "--steps", "2", "--guidance", "1", "--fps", "8"]
    words += ["--video", files / "a.mp4", "--extend", "forward", "--frames", "4", "--out", tmp_path / "out.webm"]
    assert main([str(word) for word in words]) == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line["frames"] == 13 and line["seams"] == [9] and line["known_frames"] == [[0, 9]]
    assert line["extend"] == "forward" and line["known_psnr"] > 0 and decode(tmp_path / "out.webm")[0].shape[0] == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video": "a.mp4"}, "say what to make of --video"),
        ({"extend": "forward"}, "--extend needs a video"),
        ({"image": "p.png", "video": "a.mp4", "loop": True}, "--image does not go with --video"),
        ({"image": "p.png", "strength": 0.5}, "--image does not go with --strength"),
        ({"video": "a.mp4", "loop": True, "extend": "forward"}, "--extend and --loop are two things at once"),
        ({"video": "a.mp4", "extend": "sideways"}, "none of forward, backward"),
        ({"image": ("p.png", "p.png"), "at": (1.0,)}, "2 --image and 1 --at"),
        ({"image": ("p.png", "p.png")}, "2 --image and 0 --at"),
        ({"video": "a.mp4", "strength": 0.0}, "--strength is 0.0"),
        ({"video": "a.mp4", "loop": True, "context": -1}, "--context is -1"),
        ({"image": "p.png", "fit": "squeeze"}, "crop, pad, stretch"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(UserError, match=message):
        SampleOptions("a", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "none.png"}, "none.png does not exist"),
        ({"image": "p.png", "at": 3.0}, "frame 24 at 8 fps, but the clip has 9"),
        ({"image": "p.png", "frames": 1}, "nothing is left to make"),
        ({"image": "p.png", "frames": 8}, "nearest legal number is 9"),
        ({"image": "p.png", "size": "30x0"}, "30x0 is no size"),
        ({"video": "a.mp4", "extend": "forward", "context": 10}, "--context is 10 frames, but .* shows 9 at 8 fps"),
        ({"video": "a.mp4", "connect": "b.mp4", "context": 6}, "b.mp4 shows 5"),
        ({"video": "a.mp4", "loop": True, "frames": 3}, "nearest legal number is 4"),
        ({"video": "a.mp4", "extend": "forward", "frames": 0}, "--frames is 0"),
        ({"video": "a.mp4", "strength": 0.5, "frames": 10}, "--frames is 10, but .* shows 9"),
        ({"video": "p.png", "mask": "mask.png"}, "is 32x32, but .* is 72x40"),
        ({"video": "a.mp4", "loop": True, "fps": 0.0}, "fps is 0.0"),
    ],
)
def test_files_and_numbers_that_do_not_suit_each_other(generator, files, options, message):
    paths = {name: files / value for name, value in options.items() if name in ("image", "video", "connect", "mask")}
    with pytest.raises(UserError, match=message):
        generator.video("a red ball", **{**FAST, **options, **paths})
