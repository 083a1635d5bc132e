"""Whatever is wrong with a file, it gets a verdict: nothing that a decoder does with it ends the build."""

import io
import json
import random
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline import colour
from data_pipeline.build import BuildConfig, build
from data_pipeline.frames import frame_rate
from data_pipeline.ingest import MAX_HOLD_S, ingest
from data_pipeline.video_io import encode_video

FRAMES = np.zeros((6, 24, 32, 3), np.uint8) + 5 * np.arange(32, dtype=np.uint8)[:, None]
for _number, _frame in enumerate(FRAMES):
    _frame[4:14, 2 + _number : 12 + _number] = (250, 30, 90)


def picture(kind: str, count: int = 1, **options) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in FRAMES[:count]]
    buffer = io.BytesIO()
    animated = {"save_all": True, "append_images": others, "duration": 100} if others else {}
    first.save(buffer, kind, **animated, **options)
    return buffer.getvalue()


def film(container: str, codec: str, pixels: str, seconds: tuple[float, ...] = ()) -> bytes:
    """FRAMES at 8 frames a second, or at the times `seconds`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *FRAMES.shape[1:3], pixels
        for number, frame in enumerate(FRAMES):
            coded = colour.from_srgb(frame, pixels)
            coded.pts = round(8 * seconds[number]) if seconds else number
            file.mux(stream.encode(coded))
        file.mux(stream.encode())
    return buffer.getvalue()


def every_format() -> dict[str, bytes]:
    return {
        "a.png": picture("PNG"), "apng.png": picture("PNG", 6), "a.gif": picture("GIF"),
        "moving.gif": picture("GIF", 6), "a.tiff": picture("TIFF"), "lzw.tiff": picture("TIFF", compression="tiff_lzw"),
        "a.webp": picture("WEBP"), "moving.webp": picture("WEBP", 6), "a.jpg": picture("JPEG"), "a.bmp": picture("BMP"),
        "a.avif": picture("AVIF"),
        "a.mp4": encode_video(FRAMES, 8.0, "mp4"), "a.webm": encode_video(FRAMES, 8.0, "webm"),
        "a.mkv": film("matroska", "mpeg4", "yuv420p"), "ffv1.mkv": film("matroska", "ffv1", "yuv420p"),
        "a.avi": film("avi", "mjpeg", "yuvj420p"), "a.flv": film("flv", "flv1", "yuv420p"),
        "a.mov": film("mov", "prores_ks", "yuv422p10le"), "a.ts": film("mpegts", "mpeg2video", "yuv420p"),
    }  # fmt: skip


def mutated(data: bytes, seed: int) -> bytes:
    """Cut short, bits flipped, header bytes replaced, or a piece removed."""
    rng = random.Random(seed)
    if seed % 4 == 0:
        return data[: rng.randrange(1, len(data))]
    damaged = bytearray(data)
    if seed % 4 == 1:
        for _ in range(rng.choice([1, 2, 5, 20])):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif seed % 4 == 2:
        for _ in range(rng.choice([1, 2, 4])):
            damaged[rng.randrange(min(len(data), 400))] = rng.choice([0, 128, 255])
    else:
        start = rng.randrange(len(data))
        del damaged[start : start + rng.randrange(1, 64)]
    return bytes(damaged)


@pytest.mark.parametrize("name", sorted(every_format()))
@pytest.mark.filterwarnings("ignore")  # what Pillow warns of on the way is no verdict
def test_damaged_files_of_every_format_get_a_verdict(tmp_path: Path, name: str):
    whole = every_format()[name]
    (tmp_path / name).write_bytes(whole)
    assert ingest(tmp_path / name, 20.0, tmp_path / "staged").clips, "undamaged, it is kept"
    for seed in range(12):
        (tmp_path / name).write_bytes(mutated(whole, seed))
        verdict = ingest(tmp_path / name, 20.0, tmp_path / "staged")
        assert bool(verdict.clips) != bool(verdict.rejected)


def test_a_build_goes_on_past_damaged_animations(tmp_path: Path):
    videos = tmp_path / "in"
    videos.mkdir()
    whole = {"apng.png": picture("PNG", 6), "moving.gif": picture("GIF", 6), "pages.tiff": picture("TIFF")}
    for name, data in whole.items():
        (videos / name).write_bytes(data[: len(data) // 3])
    (videos / "good.mp4").write_bytes(encode_video(FRAMES, 8.0, "mp4"))
    counts = build(videos, tmp_path / "out", BuildConfig())
    assert (counts["inputs"], counts["clips"], counts["rejected"]) == (4, 1, 3)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["path"] for line in rejected] == sorted(whole)
    assert all("cannot be read" in line["reason"] for line in rejected)


def test_a_clock_that_jumps_is_refused_and_does_not_fill_the_disk(tmp_path: Path):
    path = tmp_path / "a.mkv"
    path.write_bytes(film("matroska", "ffv1", "yuv420p", (0, 1, 2, 3, 4, 1e6)))
    assert (
        "one frame is shown for 999996 s, longer than 120 s: its clock is broken"
        in ingest(path, 20.0, tmp_path / "staged").rejected
    )
    path.write_bytes(film("matroska", "ffv1", "yuv420p", (0, 1, 2, 3, 4, 0.5 * MAX_HOLD_S)))
    assert ingest(path, 20.0, tmp_path / "staged").clips


def test_the_rate_of_three_frames_of_which_one_is_late():
    assert frame_rate([0.0, 0.125, 1e6], 0.0) == (8.0, False)
