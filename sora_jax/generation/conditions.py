"""Files as conditions: any image or video, shown at the canvas' rate and fitted to its size.

Rate: output frame i shows the newest frame of the file that is not later than i / fps seconds, as a player would.
Size: `crop` scales until the canvas is covered and crops the centre, `pad` scales until the whole picture is on the
canvas and leaves black bars, `stretch` scales each side on its own.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.frames import VideoInfo, resample
from data_pipeline.video_frames import iterate_frames, probe
from data_pipeline.video_io import check_memory, resize_and_crop

FITS = ("crop", "pad", "stretch")
WHITE = 128  # of a mask, after it was scaled


def read_clip(path: Path, fps: float, size: tuple[int, int], fit: str) -> UInt8[np.ndarray, "T Y X 3"]:
    """All frames of a file at `fps` and `size` = (width, height).

    Raises UserError for a file that shows nothing, breaks off, or is longer than the memory holds.
    """
    info = probe(path)
    check_memory(clip_frames(info, fps), size[1], size[0])
    return np.stack([fit_frame(frame, size, fit) for frame in _shown(path, info, fps)])


def read_still(path: Path, size: tuple[int, int], fit: str) -> UInt8[np.ndarray, "Y X 3"]:
    """The first picture that a file shows. Raises UserError as `read_clip`."""
    return fit_frame(next(iterate_frames(path)).rgb(), size, fit)


def read_mask(
    path: Path, source: Path, num_frames: int, fps: float, size: tuple[int, int], fit: str
) -> Bool[np.ndarray, "T Y X"]:
    """Where `source`, of which `num_frames` are shown at `fps`, is made anew: where a mask is white.

    A mask is a picture of the source's size, or a video of its size and length, and is fitted as the source is. Raises
    UserError for another size or length.
    """
    info, of_source = probe(path), probe(source)
    if (info.width, info.height) != (of_source.width, of_source.height):
        raise UserError(
            f"the mask {path} is {info.width}x{info.height}, but {source} is {of_source.width}x{of_source.height}: "
            "make a mask of that size"
        )
    count = clip_frames(info, fps)
    if count not in (1, num_frames):
        raise UserError(
            f"the mask {path} shows {count} frames at {fps:g} fps, but of {source} there are {num_frames}: give one "
            "picture, or a video as long as the source"
        )
    check_memory(num_frames, size[1], size[0])
    shown = _shown(path, info, fps) if count > 1 else [next(iterate_frames(path)).rgb()]
    masked = np.stack([fit_frame(frame, size, fit).mean(axis=-1) >= WHITE for frame in shown])
    return np.broadcast_to(masked, (num_frames, *masked.shape[1:]))


def clip_frames(info: VideoInfo, fps: float) -> int:
    """Frames of a file at `fps`; a still is one at any rate."""
    return 1 if info.num_frames == 1 else max(1, round(info.duration_s * fps))


def fit_frame(frame: UInt8[np.ndarray, "Y1 X1 3"], size: tuple[int, int], fit: str) -> UInt8[np.ndarray, "Y X 3"]:
    """One frame at `size` = (width, height), by one of `FITS`."""
    width, height = size
    if fit == "crop":
        return resize_and_crop(frame[None], height, width, allow_upscale=True)[0]
    if fit == "stretch":
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    if fit != "pad":
        raise UserError(f"fit is '{fit}', which is none of {', '.join(FITS)}")
    scale = min(width / frame.shape[1], height / frame.shape[0])
    inner = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    padded = np.zeros((height, width, 3), np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    scaled = Image.fromarray(frame).resize(inner, Image.Resampling.BICUBIC)
    padded[top : top + inner[1], left : left + inner[0]] = np.asarray(scaled)
    return padded


def _shown(path: Path, info: VideoInfo, fps: float) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    slack_s = 0.25 * min(1 / fps, 1 / info.fps)  # timestamps are rounded: data_pipeline.video_io reads alike
    for frame in resample(iterate_frames(path), fps, clip_frames(info, fps), slack_s):
        yield frame.rgb()
