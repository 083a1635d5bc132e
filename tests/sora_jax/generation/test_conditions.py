"""Files as conditions: any of them, at the canvas' rate and size."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.video_io import write_video
from sora_jax.generation.conditions import fit_frame, read_clip, read_mask, read_still


def greys(num_frames: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.broadcast_to(
        10 * np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, height, width, 3)
    )


def levels(frames: np.ndarray) -> list[int]:
    return np.round(frames.mean(axis=(1, 2, 3)) / 10).astype(int).tolist()


def test_a_clip_is_shown_at_the_canvas_rate(tmp_path):
    write_video(tmp_path / "a.mp4", greys(8), 8.0)
    assert levels(read_clip(tmp_path / "a.mp4", 8.0, (16, 16), "crop")) == list(range(8))
    assert levels(read_clip(tmp_path / "a.mp4", 4.0, (16, 16), "crop")) == [0, 2, 4, 6]
    assert levels(read_clip(tmp_path / "a.mp4", 12.0, (16, 16), "crop")) == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]


def test_an_image_is_one_frame_at_any_rate(tmp_path):
    write_video(tmp_path / "a.png", greys(1) + np.uint8(70), 8.0)
    for fps in (1.0, 240.0):
        np.testing.assert_array_equal(read_clip(tmp_path / "a.png", fps, (16, 16), "crop"), greys(1) + 70)
    np.testing.assert_array_equal(read_still(tmp_path / "a.png", (16, 16), "crop"), greys(1)[0] + 70)


def test_another_shape_is_cropped_padded_or_stretched():
    halves = np.zeros((16, 32, 3), np.uint8)
    halves[:, 16:] = 200
    crop, pad, stretch = (fit_frame(halves, (16, 16), fit) for fit in ("crop", "pad", "stretch"))
    assert np.array_equal(crop, halves[:, 8:24])
    assert np.array_equal(stretch, np.asarray(Image.fromarray(halves).resize((16, 16), Image.Resampling.BICUBIC)))
    assert not pad[:4].any() and not pad[12:].any() and pad[4:12, 9:].min() > 150 and pad[:, :7].max() < 50
    assert fit_frame(halves, (64, 64), "crop").shape == (64, 64, 3)
    with pytest.raises(UserError, match="crop, pad, stretch"):
        fit_frame(halves, (16, 16), "squeeze")


def test_a_mask_is_a_picture_or_a_video_of_the_sources_size_and_length(tmp_path):
    source, mask = tmp_path / "a.mp4", np.zeros((1, 32, 16, 3), np.uint8)
    write_video(source, greys(8, 32), 8.0)
    mask[:, 8:16] = 255
    write_video(tmp_path / "m.png", mask, 8.0)
    masked = read_mask(tmp_path / "m.png", source, 8, 8.0, (16, 16), "crop")
    assert masked.shape == (8, 16, 16) and masked[:, :8].all() and not masked[:, 8:].any()
    write_video(
        tmp_path / "m.gif", np.repeat(mask, 8, axis=0) * (np.arange(8) > 3).astype(np.uint8)[:, None, None, None], 8.0
    )
    assert (
        read_mask(tmp_path / "m.gif", source, 8, 8.0, (16, 16), "crop").any(axis=(1, 2)).tolist()
        == [False] * 4 + [True] * 4
    )
    write_video(tmp_path / "short.mp4", np.repeat(mask, 4, axis=0), 8.0)
    with pytest.raises(UserError, match="shows 4 frames at 8 fps, but of .* there are 8"):
        read_mask(tmp_path / "short.mp4", source, 8, 8.0, (16, 16), "crop")
    write_video(tmp_path / "small.png", mask[:, :16], 8.0)
    with pytest.raises(UserError, match="is 16x16, but .* is 16x32"):
        read_mask(tmp_path / "small.png", source, 8, 8.0, (16, 16), "crop")


def test_every_odd_file_conditions_or_is_one_clear_error(shared_data):
    outcomes = {}
    for path in sorted((shared_data / "odd_videos").iterdir()):
        try:
            is_large = path.stat().st_size > 250_000  # seconds each to decode: their first pictures will do
            shown = read_still(path, (16, 16), "pad")[None] if is_large else read_clip(path, 2.0, (16, 16), "crop")
            outcomes[path.name] = shown.shape
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            outcomes[path.name] = "error"
    shapes = [shape for shape in outcomes.values() if shape != "error"]
    assert len(shapes) > 30 and all(shape[0] > 0 and shape[1:] == (16, 16, 3) for shape in shapes)
    assert "error" in outcomes.values()
