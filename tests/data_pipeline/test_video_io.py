"""Files in and out: exact sizes and times, the player's duties, damage."""

import io
import subprocess
import sys
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline import colour
from data_pipeline.errors import UserError
from data_pipeline.frames import Frame, frame_rate, resample
from data_pipeline.video_frames import iterate_frames
from data_pipeline.video_io import decode, encode_video, probe, resize_and_crop, write_video


def moving_square(num_frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A red square that moves two pixels a frame to the right over a grey ramp."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames += (40 + np.arange(width, dtype=np.uint8))[:, None]
    for number, frame in enumerate(frames):
        frame[8:20, 4 + 2 * number : 16 + 2 * number] = (220, 40, 40)
    return frames


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9)))


def encode(
    frames: np.ndarray, codec="libx264", pixels="yuv420p", container="mp4", pts=None, setup=None, **options
) -> bytes:
    """A file with chosen timestamps (in 1/8 s), stream properties and tags."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=8, options={"crf": "4", **options})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.codec_context.time_base = Fraction(1, 8)
        if setup is not None:
            setup(stream)
        for number, frame in enumerate(frames):
            picture = colour.from_srgb(frame, pixels)
            picture.pts, picture.time_base = number if pts is None else pts[number], Fraction(1, 8)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_written_videos_come_back(tmp_path, ending, size):
    frames = moving_square(9, *size)
    write_video(tmp_path / f"a.{ending}", frames, 8.0)
    back, fps = decode(tmp_path / f"a.{ending}")
    assert back.shape == frames.shape and fps == pytest.approx(8.0, rel=0.01)
    assert psnr(back, frames) > 30
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]
    info = probe(tmp_path / f"a.{ending}")
    assert (info.num_frames, info.height, info.width, info.constant_rate) == (9, *size, True)


def test_png_is_exact_and_holds_one_frame(tmp_path):
    frames = moving_square(1)
    write_video(tmp_path / "a.png", frames, 8.0)
    np.testing.assert_array_equal(decode(tmp_path / "a.png")[0], frames)
    with pytest.raises(UserError, match="one frame, there are more"):
        write_video(tmp_path / "b.png", moving_square(), 8.0)
    with pytest.raises(UserError, match="choose an ending of mp4, webm, gif, png"):
        write_video(tmp_path / "b.bmp", frames, 8.0)
    with pytest.raises(UserError, match="uint8 frames"):
        encode_video(frames[:0], 8.0, "mp4")


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif"])
def test_a_video_is_written_as_its_frames_come(tmp_path, ending):
    """From an iterator: the same file, and a frame is gone (but for the encoder's look-ahead) when the next is made."""
    alive: list[weakref.ref] = []
    most = 0

    def frames():
        nonlocal most
        for frame in moving_square(40):
            own = frame.copy()
            alive.append(weakref.ref(own))
            most = max(most, sum(reference() is not None for reference in alive))
            yield own
            del own

    assert write_video(tmp_path / f"a.{ending}", frames(), 8.0) == 40 and most <= 4
    assert (tmp_path / f"a.{ending}").read_bytes() == encode_video(moving_square(40), 8.0, ending)


def test_frames_that_end_in_an_error_leave_no_file(tmp_path):
    def frames(last):
        yield from moving_square(4)
        if last is None:
            raise RuntimeError("out of frames")
        yield last

    (tmp_path / "a.mp4").write_bytes(b"older")
    with pytest.raises(RuntimeError, match="out of frames"):
        write_video(tmp_path / "a.mp4", frames(None), 8.0)
    for ending in ("mp4", "gif"):
        with pytest.raises(UserError, match=r"of \[32, 48, 3\], got uint8 \[16, 48, 3\]"):
            write_video(tmp_path / f"a.{ending}", frames(moving_square(1, height=16)[0]), 8.0)
    with pytest.raises(UserError, match="got none"):
        write_video(tmp_path / "b.mp4", iter(()), 8.0)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.mp4", b"older")]


def test_a_write_that_fails_says_why_and_leaves_no_file(tmp_path):
    """A limit of 20,000 bytes a file, in a process of its own, stands for a full disk."""
    script = f"""
import resource, signal, numpy as np
from data_pipeline.errors import UserError
from data_pipeline.video_io import write_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
for ending in ("mp4", "webm", "gif"):
    try:
        write_video(r"{tmp_path}/a." + ending, frames, 8.0)
    except UserError as error:
        print(ending, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["mp4", "webm", "gif"], done.stderr
    assert all("failed: File too large" in line for line in lines) and not list(tmp_path.iterdir())


def test_a_gif_shows_every_frame_for_its_time(tmp_path):
    """Equal frames count, and colours are those of each frame alone, whatever rectangle was written."""
    frames = moving_square(6)[[0, 0, 1, 2, 2, 5]]
    write_video(tmp_path / "a.gif", frames, 12.5)
    back, fps = decode(tmp_path / "a.gif")
    assert fps == 12.5 and len(back) == 6 and psnr(back, frames) > 40
    np.testing.assert_array_equal(back[1], back[0])
    whole, changed = (len(encode_video(moving_square(count), 8.0, "gif")) for count in (1, 2))
    assert changed - whole < 0.8 * whole


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif"])
def test_equal_frames_give_equal_bytes(ending):
    assert encode_video(moving_square(), 8.0, ending) == encode_video(moving_square(), 8.0, ending)


def test_full_chroma_keeps_colours_of_small_things():
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (1, 8, 8, 3)).repeat(4, 1).repeat(4, 2), 3, axis=0).astype(np.uint8)
    assert psnr(decode(encode_video(frames, 8.0, "mp4", 8, full_chroma=True))[0], frames) > 38


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_metadata_turns_the_picture(degrees):
    """`set_display_rotation` is counter-clockwise, as numpy's rot90 is."""
    frames = moving_square()
    video = encode(frames, setup=lambda stream: stream.set_display_rotation(degrees))
    expected = np.rot90(frames, degrees // 90, axes=(1, 2))
    back, _ = decode(video)
    assert back.shape == expected.shape and psnr(back, expected) > 30
    assert (probe(video).height, probe(video).width) == expected.shape[1:3]


def test_non_square_pixels_are_stretched_never_shrunk():
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)

    def tall(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(1, 2)

    assert decode(encode(moving_square(), setup=wide))[0].shape == (9, 32, 72, 3)
    assert decode(encode(moving_square(), setup=tall))[0].shape == (9, 64, 48, 3)


def test_variable_frame_rate_holds_frames_as_long_as_they_are_shown():
    """Frames at 0, 1, 2, 6, 7 eighths of a second: the third is held for four output frames."""
    video = encode(moving_square(5), container="matroska", pts=[0, 1, 2, 6, 7])
    info = probe(video)
    back, fps = decode(video)
    assert not info.constant_rate and fps == pytest.approx(8.0, rel=0.01) and len(back) == info.num_frames == 8
    shown = np.array([0, 1, 2, 2, 2, 2, 3, 4])
    assert psnr(back, moving_square(5)[shown]) > 30


def test_time_starts_at_the_first_frame():
    """An mp4 that starts late has an edit list: players start with the first picture."""
    back, _ = decode(encode(moving_square(5), pts=[7, 8, 9, 10, 11]))
    assert psnr(back, moving_square(5)) > 30


def test_other_rates_take_the_newest_frame_not_later():
    video = encode_video(moving_square(12), 30.0, "mp4", 4)
    slow, fps = decode(video, fps=10.0)
    assert fps == 10.0 and psnr(slow, moving_square(12)[::3]) > 30
    fast, _ = decode(video, fps=60.0, max_frames=6)
    assert psnr(fast, moving_square(12)[[0, 0, 1, 1, 2, 2]]) > 30
    middle, _ = decode(video, start_s=0.1, end_s=0.2)
    assert psnr(middle, moving_square(12)[3:6]) > 30


def test_resample_tolerates_rounded_clocks():
    times = [round(number / 29.97, 3) for number in range(300)]
    frames = [
        Frame(time, False, {}, (1, 1), "", lambda n=n: np.full((1, 1, 3), n % 256, np.uint8))
        for n, time in enumerate(times)
    ]
    fps, constant = frame_rate(times, 1000.0)
    assert constant and fps == pytest.approx(30000 / 1001, rel=1e-5)
    shown = list(resample(frames, fps, 300, 0.25 / fps))
    assert shown == frames


@pytest.mark.parametrize(
    ("times", "declared", "expected"),
    [
        ([0.0], 25.0, (25.0, True)),
        ([0.0], 1000.0, (24.0, True)),
        ([0.0, 0.04, 0.08], 25.0, (25.0, True)),
        ([0.0, 0.033, 0.067, 0.1], 1000.0, (30.0, True)),
        ([0.0, 0.1, 0.2, 0.7], 10.0, (10.0, False)),
        ([0.0, 0.001, 0.002], 1000.0, (1000.0, True)),
    ],
)
def test_frame_rate_is_measured(times, declared, expected):
    rate, constant = frame_rate(times, declared)
    assert (rate, constant) == (pytest.approx(expected[0]), expected[1])


def test_ten_bits_and_full_range_give_the_same_picture():
    frames = moving_square()
    ten = encode(frames, codec="ffv1", pixels="yuv420p10le", container="matroska")
    eight = encode(frames, codec="ffv1", pixels="yuv420p", container="matroska")
    assert psnr(decode(ten)[0], decode(eight)[0]) > 45
    buffer = io.BytesIO()
    Image.fromarray(frames[0]).save(buffer, "JPEG", quality=95, subsampling=0)  # full range BT.601
    assert psnr(decode(buffer.getvalue())[0][0], frames[0]) > 35


def test_alpha_lies_over_black(tmp_path):
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 8:, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    expected = np.zeros((16, 16, 3), np.uint8)
    expected[:, 8:, 0] = round(200 * 128 / 255)
    np.testing.assert_array_equal(decode(tmp_path / "a.png")[0][0], expected)

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as file:
        stream = file.add_stream("libvpx-vp9", rate=8, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuva420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p")
            frame.pts = None
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    back = decode(buffer.getvalue())[0].astype(int)
    assert abs(back[1, 8, 2]).max() < 8 and abs(back[1, 8, 13] - [100, 0, 0]).max() < 8
    assert "alpha" in probe(buffer.getvalue()).colour["handling"]


def test_high_dynamic_range_is_tone_mapped_smoothly():
    def pq(stream):
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9
        stream.codec_context.colorspace = 9

    grey = np.full((1, 16, 16, 3), 148, np.uint8)  # about 58% of the PQ signal: reference white
    video = encode(grey, codec="ffv1", pixels="yuv420p10le", container="matroska", setup=pq)
    shown = decode(video)[0]
    assert "pq" in probe(video).colour["handling"]
    assert np.ptp(shown) <= 2 and 225 < shown.mean() < 250
    light = np.linspace(0, 8, 1000, dtype=np.float32)
    curve = colour.tone_curve(light)
    assert np.all(np.diff(curve) >= 0) and curve.max() == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_array_equal(curve[light <= colour.KNEE], light[light <= colour.KNEE])


def test_an_animated_gif_keeps_its_times():
    buffer = io.BytesIO()
    images = [Image.fromarray(frame) for frame in moving_square(3)]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=[100, 300, 100])
    info = probe(buffer.getvalue())
    assert info.num_frames == 5 and info.duration_s == pytest.approx(0.5)
    back, _ = decode(buffer.getvalue())
    np.testing.assert_array_equal(back[1], back[3])


def test_a_photo_is_turned_as_its_camera_was(tmp_path):
    image = Image.fromarray(moving_square(1)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "a.png")[0][0], np.rot90(moving_square(1)[0], -1))


def test_truncated_missing_and_foreign_files_are_clear_errors(tmp_path):
    whole = encode_video(moving_square(40, 64, 64), 8.0, "mp4", 4)
    with pytest.raises(UserError, match="cannot be read"):
        decode(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="does not exist"):
        probe(tmp_path / "absent.mp4")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UserError, match=r"a\.txt cannot be read"):
        probe(tmp_path / "a.txt")
    image = encode_video(moving_square(1, 200, 200), 8.0, "png")
    with pytest.raises(UserError, match="image cannot be read"):
        decode(image[: len(image) // 2])


def test_frames_before_the_first_key_frame_are_damage():
    """A copy without the first packet starts with frames that are predicted from nothing."""
    video = encode(moving_square(24), codec="msmpeg4", container="matroska", g="8")
    buffer = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(buffer, "w", format="matroska") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[1:]:
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    damage = [frame.corrupt for frame in iterate_frames(buffer.getvalue())]
    assert damage == [True] * 7 + [False] * 16


def test_resize_covers_then_crops_the_centre():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 3, (2, 32, 64, 3)).copy()
    small = resize_and_crop(ramp, 16, 16)
    assert small.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(small[0, 8, :, 0], 3 * (16.5 + 2 * np.arange(16)), atol=2)
    flat = np.full((1, 37, 53, 3), 77, np.uint8)
    assert np.all(resize_and_crop(flat, 20, 20) == 77)
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.all(np.abs(resize_and_crop(stripes, 16, 16).astype(int)[:, 2:-2, 2:-2] - 127) < 12)
    with pytest.raises(UserError, match="64x64 frames do not cover 128x32"):
        resize_and_crop(stripes, 32, 128)
    assert resize_and_crop(stripes, 32, 128, allow_upscale=True).shape == (1, 32, 128, 3)


ODD: dict[str, Callable[[np.ndarray, float], bool]] = {
    "decord__video_90.mov": lambda frames, fps: frames.shape == (3, 568, 320, 3),
    "decord__video_270.mov": lambda frames, fps: frames.shape == (3, 568, 320, 3),
    "media__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4": lambda frames, fps: frames.shape[1:3] == (640, 1137),
    "media__sample.flv": lambda frames, fps: len(frames) == 30 and fps == 30.0,
    "media__sample_android_slow_motion.mp4": lambda frames, fps: len(frames) == 16 and fps == 30.0,
    "media__hlg10-color-test.mp4": lambda frames, fps: frames.max() > 230 and frames.min() < 20,
    "torchcodec__h265_10bits.mp4": lambda frames, fps: frames.shape == (30, 200, 200, 3),
}


@pytest.mark.parametrize("name", sorted(ODD))
def test_odd_files_are_shown_as_a_player_shows_them(shared_data: Path, name):
    assert ODD[name](*decode(shared_data / "odd_videos" / name))
