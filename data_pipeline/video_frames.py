"""Frames of video and image files, shown as a good player would show them.

Display matrix (rotation, mirroring), non-square pixels (the short dimension is stretched), variable frame rate (frames
lie where their timestamps say), edit lists (libavformat drops what they hide), any bit depth, HDR and alpha
(`colour.py`), odd sizes; audio is ignored. An image is a video of one frame (`image_frames.py`). Time 0 is the first
shown frame.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from data_pipeline import colour
from data_pipeline.errors import UserError
from data_pipeline.frames import Frame, Source, VideoInfo, frame_rate, readable, source_name
from data_pipeline.image_frames import iterate_image, open_image, probe_image

_MEDIA_TYPES = {"mov": "video/mp4", "matroska": "video/x-matroska", "flv": "video/x-flv", "avi": "video/x-msvideo"}
_SUFFIX_TYPES = {".webm": "video/webm", ".mov": "video/quicktime"}


def probe(source: Source) -> VideoInfo:
    """Reads headers, packet times and the first frame. Raises `UserError` for what shows no frame."""
    image = open_image(source, _file(source))
    if image is not None:
        with image:
            return probe_image(image)
    with _open_video(source) as (container, stream):
        times = sorted(_packet_times(container, stream))
    fps, constant = frame_rate(times, float(stream.average_rate or 0))
    first = next(iterate_frames(source))
    num_frames = len(times) if constant else max(1, round((times[-1] - times[0]) * fps) + 1)
    name = source if isinstance(source, str | Path) else ""
    container_type = container.format.name.split(",")[0]
    return VideoInfo(
        media_type=_SUFFIX_TYPES.get(Path(name).suffix, _MEDIA_TYPES.get(container_type, f"video/x-{container_type}")),
        codec=stream.codec_context.name,
        num_frames=num_frames,
        fps=fps,
        constant_rate=constant,
        duration_s=num_frames / fps,
        height=first.size[0],
        width=first.size[1],
        has_audio=bool(container.streams.audio),
        colour=first.colour,
        geometry=first.geometry,
    )


def iterate_frames(source: Source) -> Iterator[Frame]:
    """Frames in display order, from time 0.

    Raises `UserError` where the file cannot be read on, if it shows no frame at all, or if it is encrypted.
    """
    image = open_image(source, _file(source))
    if image is not None:
        with image:
            yield from iterate_image(image)
        return
    with _open_video(source) as (container, stream):
        step = _declared_step(stream)
        start, previous, complete, shown = None, -step, False, 0
        reformatter = VideoReformatter()
        # A stream that does not start with a key frame predicts from nothing up to its first intra picture: a grey
        # haze that decoders do not report.
        for frame, started_at_key in _decoded(container, stream):
            ticks = frame.pts
            start = ticks if start is None else start
            time = previous + step if ticks is None or start is None else float((ticks - start) * stream.time_base)
            # Broken clocks repeat or run backwards: such a frame comes one declared step after its predecessor.
            previous = time if time > previous else previous + step
            complete = complete or started_at_key or frame.key_frame or frame.pict_type == PictureType.I
            shown += 1
            yield _frame(frame, stream, previous, frame.is_corrupt or not complete, reformatter)
        if not shown:
            raise UserError(f"{source_name(source)} shows no frame: its video stream is empty or damaged")


def _file(source: Source) -> io.BytesIO | str:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


@contextmanager
def _open_video(source: Source) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its main video stream (no cover art); every error within becomes a `UserError`."""
    with readable(source_name(source)), av.open(_file(source), metadata_errors="ignore") as container:
        videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not videos:
            kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
            raise UserError(f"{source_name(source)} has no video stream, only {', '.join(kinds)}")
        best = container.streams.best("video")
        stream = best if best in videos else videos[0]
        if stream.codec_context is None:
            raise UserError(f"{source_name(source)} has a video stream that no decoder here knows")
        stream.codec_context.thread_count = 1
        yield container, stream


def _declared_step(stream: av.VideoStream) -> float:
    """Seconds a frame by the header, for frames without a usable time; absurd headers count as 25 frames a second."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    return 1 / rate if 1 <= rate <= 240 else 1 / 25


def _packet_times(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[float]:
    step = _declared_step(stream)
    for number, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
        if not packet.is_discard:
            ticks = packet.pts if packet.pts is not None else packet.dts
            yield number * step if ticks is None else float(ticks * packet.time_base)


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.VideoFrame, bool]]:
    """(frame, whether the stream's first packet was a key frame), in display order."""
    started_at_key = None
    context = None
    name = stream.codec_context.name
    alpha = stream.metadata.get("ALPHA_MODE", stream.metadata.get("alpha_mode"))
    if alpha == "1" and name in ("vp8", "vp9"):  # the native decoders drop the alpha plane
        context = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[name], "r")
        context.thread_count = 1
    for packet in container.demux(stream):
        if packet.has_sidedata("encryption_info"):
            raise UserError("the video is encrypted: decrypt it first")
        started_at_key = packet.is_keyframe if started_at_key is None else started_at_key
        try:
            frames = packet.decode() if context is None else context.decode(packet if packet.size else None)
        except av.error.InvalidDataError:  # what the decoder still holds came before the damage
            yield from ((frame, started_at_key) for frame in (context or stream.codec_context).decode(None))
            raise
        yield from ((frame, started_at_key) for frame in frames)


def _frame(
    frame: av.VideoFrame, stream: av.VideoStream, time_s: float, corrupt: bool, reformatter: VideoReformatter
) -> Frame:
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    aspect = aspect if Fraction(1, 8) <= aspect <= 8 else Fraction(1)
    height, width = round(frame.height / min(aspect, 1)), round(frame.width * max(aspect, 1))
    turn = _display_transform(frame)
    size = (width, height) if turn[0] else (height, width)
    stretched = f"pixels of {aspect.numerator}:{aspect.denominator} made square" if aspect != 1 else ""
    geometry = ", ".join(filter(None, ["turned upright" if any(turn) else "", stretched]))
    pixels = partial(_pixels, frame, reformatter, turn, height, width)
    scaled = partial(_scaled, frame, reformatter, turn)
    return Frame(time_s, corrupt, colour.describe(frame), size, geometry, pixels, scaled)


Turn = tuple[bool, bool, bool]
"""transpose, flip x, flip y"""


def _scaled(
    frame: av.VideoFrame, reformatter: VideoReformatter, turn: Turn, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    return _pixels(frame, reformatter, turn, *((width, height) if turn[0] else (height, width)))


def _pixels(
    frame: av.VideoFrame, reformatter: VideoReformatter, turn: Turn, height: int, width: int
) -> UInt8[np.ndarray, "Y X 3"]:
    with readable("a frame"):
        pixels = colour.to_srgb(frame, height, width, reformatter)
    transpose, flip_x, flip_y = turn
    pixels = pixels.transpose(1, 0, 2) if transpose else pixels
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _display_transform(frame: av.VideoFrame) -> Turn:
    """(transpose, flip x, flip y) nearest to the display matrix: x' = a x + c y, y' = b x + d y."""
    for side_data in frame.side_data:
        if side_data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = struct.unpack("<9i", bytes(side_data)[:36])
            if abs(a * d - b * c) < 1 << 16:  # no invertible matrix: a broken header
                return False, False, False
            return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
    return False, False, False
