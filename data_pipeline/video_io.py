"""Video and image files as arrays, in and out.

Reading is at constant rate: for each output time the newest frame not later than it (`video_frames.py` says how files
are shown). Writing is mp4, webm, gif or png by the file's ending, single-threaded, so that equal frames give equal
bytes; what is encoded for storage and what a sampler writes go through the same functions.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import GifImagePlugin, Image, ImageChops

from data_pipeline import colour
from data_pipeline.errors import UserError, from_os_error
from data_pipeline.frames import Source, VideoInfo, resample, source_name
from data_pipeline.records import ClipRecord
from data_pipeline.video_frames import iterate_frames, probe

__all__ = [
    "Frames",
    "VideoInfo",
    "check_memory",
    "decode",
    "decode_record",
    "encode_video",
    "iterate_clip",
    "iterate_record",
    "probe",
    "record_frames",
    "resize_and_crop",
    "write_video",
]

Frames = UInt8[np.ndarray, "T Y X 3"]


def decode(
    source: Source,
    max_frames: int | None = None,
    fps: float | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> tuple[Frames, float]:
    """(frames, fps) of `[start_s, end_s)`, at the file's own rate unless `fps` is given.

    Raises `UserError` if the file shows no frame or breaks off within the range.
    """
    info = probe(source)
    end_s = info.duration_s if end_s is None else end_s
    num_frames = max(1, round((end_s - start_s) * (fps or info.fps)))
    num_frames = num_frames if max_frames is None else min(num_frames, max_frames)
    return np.stack(list(_decode(source, info.fps, fps or info.fps, start_s, num_frames))), fps or info.fps


def decode_record(record: ClipRecord, max_frames: int | None = None, fps: float | None = None) -> tuple[Frames, float]:
    """(frames, fps) of a clip record, cropped, at the record's rate unless `fps` is given.

    Raises `UserError` if the bytes do not decode to the record's size or break off.
    """
    num_frames = record_frames(record, fps)
    num_frames = num_frames if max_frames is None else min(num_frames, max_frames)
    return np.stack(list(islice(iterate_record(record, fps), num_frames))), fps or record.fps


def record_frames(record: ClipRecord, fps: float | None = None) -> int:
    """The number of frames of a clip record at `fps`, its own rate by default."""
    return max(1, round((record.end_s - record.start_s) * (fps or record.fps)))


def iterate_record(record: ClipRecord, fps: float | None = None) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """The `record_frames` frames of `decode_record`, one in memory at a time."""
    top, left, height, width = record.crop
    for frame in _decode(record.video, record.fps, fps or record.fps, record.start_s, record_frames(record, fps)):
        if frame.shape[:2] != (record.height, record.width):
            found, said = (f"{size[1]}x{size[0]}" for size in (frame.shape, (record.height, record.width)))
            raise UserError(f"{record.clip_id} decodes to {found}, its record says {said}: rebuild")
        yield frame[top : top + height, left : left + width]


def iterate_clip(source: Source, fps: float, start: int, num_frames: int) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """Frames `[start, start + num_frames)` of a source whose constant rate is `fps`, one in memory at a time.

    Raises `UserError` where the file cannot be read on or changes its size.
    """
    yield from _decode(source, fps, fps, start / fps, num_frames)


def _decode(source: Source, source_fps: float, fps: float, start_s: float, num_frames: int) -> Iterator[np.ndarray]:
    """`num_frames` pictures of one size."""
    slack_s = 0.25 * min(1 / fps, 1 / source_fps)
    pixels = last = None
    for frame in resample(iterate_frames(source), fps, num_frames, slack_s, start_s):
        if frame is not last or pixels is None:
            shape = pixels.shape if pixels is not None else None
            pixels, last = frame.rgb(), frame
            if shape not in (None, pixels.shape):
                raise UserError(f"{source_name(source)} changes its frame size midway: encode it again at one size")
        yield pixels


def resize_and_crop(
    frames: Frames, height: int, width: int, allow_upscale: bool = False
) -> UInt8[np.ndarray, "T {height} {width} 3"]:
    """Scales (antialiased) so that the frame just covers `height` x `width`, then crops the centre.

    Raises `UserError` if that would enlarge the frames, unless `allow_upscale`.
    """
    found_height, found_width = frames.shape[1:3]
    scale = max(height / found_height, width / found_width)
    if scale > 1 and not allow_upscale:
        raise UserError(f"{found_width}x{found_height} frames do not cover {width}x{height} without enlarging them")
    if (found_height, found_width) == (height, width):
        return frames
    top, left = (found_height - height / scale) / 2, (found_width - width / scale) / 2
    box = (left, top, left + width / scale, top + height / scale)
    resize = partial(Image.Image.resize, size=(width, height), resample=Image.Resampling.BICUBIC, box=box)
    return np.stack([np.asarray(resize(Image.fromarray(frame))) for frame in frames])


def check_memory(num_frames: int, height: int, width: int) -> None:
    """Raises `UserError` for videos that cannot be made here: as float32, the pixels alone are more than the memory."""
    needed = 4 * 3 * num_frames * height * width
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise UserError(
            f"{num_frames} frames of {width}x{height} are {needed / 2**30:.0f} GiB of pixels, this machine has "
            f"{memory / 2**30:.0f} GiB of memory: choose a smaller size or fewer frames"
        )


def write_video(
    path: Path | str, frames: Iterable[UInt8[np.ndarray, "Y X 3"]], fps: float, crf: int | None = None
) -> int:
    """Writes mp4 (H.264), webm (VP9), gif or png (one frame only) by the ending of `path`, atomically; returns how many
    frames. Of an iterator, one frame is in memory at a time.

    mp4 is 4:2:0 for even sizes and 4:4:4 for odd ones, so that the size is always exact. Raises `UserError` for
    another ending, several frames as png, or a failed write; what `frames` raises leaves no file behind.
    """
    path = Path(path)
    # Not the name itself with something around it: that may be as long as the file system allows.
    partial_path = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_path.open("wb") as file:
            num_frames = _write(file, frames, fps, path.suffix.lower().lstrip("."), crf)
        partial_path.replace(path)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
    finally:
        with suppress(OSError):
            partial_path.unlink()
    return num_frames


def encode_video(
    frames: Iterable[UInt8[np.ndarray, "Y X 3"]],
    fps: float,
    ending: str,
    crf: int | None = None,
    full_chroma: bool = False,
) -> bytes:
    """The bytes of a whole file, made with one frame in memory at a time.

    `crf` is the codec's quality (16 for H.264, 24 for VP9), `full_chroma` means 4:4:4.
    """
    buffer = io.BytesIO()
    _write(buffer, frames, fps, ending, crf, full_chroma)
    return buffer.getvalue()


def _write(
    file: io.BytesIO | io.BufferedWriter,
    frames: Iterable[np.ndarray],
    fps: float,
    ending: str,
    crf: int | None,
    full_chroma: bool = False,
) -> int:
    """Writes the frames into an open file, which can seek, and counts them."""
    if not fps > 0:
        raise UserError(f"fps must be above 0, got {fps}")
    if ending not in ("mp4", "webm", "gif", "png"):
        raise UserError(f"cannot write .{ending} files: choose an ending of mp4, webm, gif, png")
    counted = Counted(frames)
    first = next(counted, None)
    if first is None:
        raise UserError("expected uint8 frames [T, Y, X, 3], got none")
    if ending == "png":
        if next(counted, None) is not None:
            raise UserError("a png holds one frame, there are more: choose mp4, webm or gif")
        Image.fromarray(first).save(file, format="PNG")
    elif ending == "gif":
        _write_gif(file, chain([first], counted), fps)
    else:
        _encode(file, chain([first], counted), *first.shape[:2], fps, ending, crf, full_chroma)
    return counted.number


class Counted(Iterator[np.ndarray]):
    """The frames of an iterable, checked to be pictures of one size, and how many have passed."""

    def __init__(self, frames: Iterable[np.ndarray]):
        self.frames, self.shape, self.number = iter(frames), None, 0

    def __next__(self) -> np.ndarray:
        frame = next(self.frames)
        good = frame.ndim == 3 and frame.shape[-1] == 3 and frame.dtype == np.uint8 and frame.size
        if not good or frame.shape != (self.shape or frame.shape):
            size = f" of {list(self.shape)}" if self.shape else ""
            raise UserError(f"expected uint8 frames [Y, X, 3]{size}, got {frame.dtype} {list(frame.shape)}")
        self.shape, self.number = frame.shape, self.number + 1
        return frame


def _encode(
    file: io.BytesIO | io.BufferedWriter,
    frames: Iterable[np.ndarray],
    height: int,
    width: int,
    fps: float,
    ending: str,
    crf: int | None,
    full_chroma: bool,
) -> None:
    if ending == "webm":
        codec, quality = "libvpx-vp9", 24
        fixed = {"g": "8", "threads": "1", "cpu-used": "4", "deadline": "good"}
        pixels = "yuv444p" if full_chroma else "yuv420p"
    else:
        # x264's fast kernels differ between CPUs and read memory that nobody wrote: without `cpu-independent`, 3 of 20
        # tiny clips were encoded in two ways (in 70 runs each), with it none (in 250).
        codec, quality = "libx264", 16
        fixed = {"g": "8", "threads": "1", "preset": "medium", "x264-params": "cpu-independent=1"}
        pixels = "yuv444p" if height % 2 or width % 2 or full_chroma else "yuv420p"
    options = {"crf": str(quality if crf is None else crf), **fixed}
    # By its name FFmpeg writes a file itself: of an error in a Python file PyAV would not say which. "bitexact" leaves
    # library versions and dates out.
    where = file if isinstance(file, io.BytesIO) else str(file.name)
    with av.open(where, "w", format=ending, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        context = stream.codec_context
        context.thread_count = 1
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 1, 1, 1
        for frame in frames:
            container.mux(stream.encode(colour.from_srgb(frame, pixels)))
        container.mux(stream.encode())


def _write_gif(file: io.BytesIO | io.BufferedWriter, frames: Iterable[np.ndarray], fps: float) -> None:
    """Each frame with a palette of its own, cut to the rectangle that changes; Pillow's own writer keeps them all.

    GIF counts hundredths of a second: rounding the frame times, not the durations, keeps the total length.
    """
    shown = None
    for number, frame in enumerate(frames):
        image = Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE)
        duration_ms = 10 * int(np.round((number + 1) * 100 / fps) - np.round(number * 100 / fps))
        colours = image.convert("RGB")
        if shown is None:
            header, _ = GifImagePlugin.getheader(image, info={"loop": 0, "duration": duration_ms, "optimize": False})
            file.writelines([*header, *GifImagePlugin.getdata(image, duration=duration_ms)])
        else:
            box = ImageChops.difference(shown, colours).getbbox() or (0, 0, 1, 1)  # an equal frame takes its time too
            options = {"duration": duration_ms, "include_color_table": True}
            file.writelines(GifImagePlugin.getdata(image.crop(box), box[:2], **options))
        shown = colours
    file.write(b";")
