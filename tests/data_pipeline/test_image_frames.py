"""Images as a good viewer shows them: depths, rates of animations, and what lies behind the first picture."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.video_io import decode, probe

GREY = np.linspace(0, 65535, 24 * 32).reshape(24, 32).round().astype(np.uint16)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(count: int) -> list[Image.Image]:
    frames = np.zeros((count, 24, 32, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[4:12, 3 * number : 3 * number + 8] = (220, 120, 40)
    return [Image.fromarray(frame) for frame in frames]


def animation(kind: str, durations_ms: list[int]) -> bytes:
    first, *others = pictures(len(durations_ms))
    lossless = {} if kind == "AVIF" else {"lossless": True}
    return saved(first, kind, save_all=True, append_images=others, duration=durations_ms, **lossless)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_to_eight(kind):
    back = decode(saved(Image.fromarray(GREY), kind))[0][0]
    np.testing.assert_array_equal(back, np.repeat(np.round(GREY / 257).astype(np.uint8)[..., None], 3, -1))


def test_a_tiff_may_count_from_white_or_to_twelve_bits():
    inverted = decode(saved(Image.fromarray(GREY), "TIFF", tiffinfo={262: 0}))[0][0]
    np.testing.assert_array_equal(inverted[..., 0], 255 - np.round(GREY / 257).astype(np.uint8))
    white = np.full((16, 16), 0xFFF, np.uint16)
    data = bytearray(saved(Image.fromarray(white), "TIFF"))
    tag = data.index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00")  # BitsPerSample: one short, 16
    data[tag + 8] = 12
    start = data.index(b"\xff\x0f" * 16)
    data[start : start + 24 * 16] = b"\xff" * (24 * 16)  # packed: three bytes for two pixels
    assert (decode(bytes(data))[0] == 255).all()


@pytest.mark.parametrize("pixels", [GREY.astype(np.float32) / 65535, GREY.astype(np.int32)])
def test_depths_that_do_not_say_what_is_white_are_refused(pixels):
    with pytest.raises(UserError, match="does not say which value is white: save it with 8 or 16 bits"):
        decode(saved(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "AVIF"])
@pytest.mark.parametrize("duration_ms", [40, 250])
def test_animations_keep_their_rate(kind, duration_ms):
    info = probe(animation(kind, [duration_ms] * 5))
    assert (info.num_frames, info.constant_rate) == (5, True)
    assert info.fps == pytest.approx(1000 / duration_ms, rel=1e-3)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_animations_hold_frames_as_long_as_they_say(kind):
    data = animation(kind, [100, 300, 100])
    back, fps = decode(data)
    assert fps == 10.0 and len(back) == 5
    np.testing.assert_array_equal(back[1], back[3])
    assert (back[0] != back[1]).any() and (back[3] != back[4]).any()


@pytest.mark.parametrize("kind", ["TIFF", "MPO"])
def test_further_pages_are_no_frames(kind):
    first, *others = pictures(3)
    back, _ = decode(saved(first, kind, save_all=True, append_images=others))
    assert back.shape == (1, 24, 32, 3)
    assert np.abs(back[0].astype(int) - np.asarray(first)).mean() < 12


def test_the_stand_in_of_an_animated_png_is_no_frame():
    stand_in, *frames = pictures(4)
    data = saved(stand_in, "PNG", save_all=True, append_images=frames, duration=100, default_image=True)
    shown = decode(data)[0]
    np.testing.assert_array_equal(shown, [np.asarray(frame) for frame in frames])
