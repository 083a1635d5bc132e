"""Frames of image files: stills, and the animations of PNG, GIF, WebP and AVIF.

A still is a video of one frame; of formats that keep other things behind their first picture (a TIFF's pages, the
thumbnail or gain map of a phone's JPEG) only that is shown. Grey of up to 16 bits is scaled to 8.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from data_pipeline.errors import UserError
from data_pipeline.frames import IMAGE_FPS, Frame, Source, VideoInfo, frame_rate, readable, source_name

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
_ANIMATED_FORMATS = ("PNG", "GIF", "WEBP", "AVIF")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def open_image(source: Source, file: Any) -> Image.Image | None:
    """`file`, the opened `source` or its path, as an image, or None if it is none.

    Raises `UserError` for a damaged or absurdly large image.
    """
    try:
        with readable(source_name(source)):
            try:
                return Image.open(file, formats=_FORMATS)
            except UnidentifiedImageError:
                return None
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"{source_name(source)} does not exist") from error
        raise


def probe_image(image: Image.Image) -> VideoInfo:
    """Raises `UserError` if any frame is damaged."""
    shown = _timed(image)
    first, end_s = next(shown)
    edges_s = [0.0, end_s, *(end_s for _, end_s in shown)]
    fps, constant = (IMAGE_FPS, True) if len(edges_s) == 2 else frame_rate(edges_s, 0.0)
    num_frames = 1 if len(edges_s) == 2 else max(1, round(edges_s[-1] * fps))
    return VideoInfo(
        media_type=Image.MIME[str(image.format)],
        codec=str(image.format).lower(),
        num_frames=num_frames,
        fps=fps,
        constant_rate=constant,
        duration_s=num_frames / fps,
        height=first.size[0],
        width=first.size[1],
        has_audio=False,
        colour=first.colour,
        geometry=first.geometry,
    )


def iterate_image(image: Image.Image) -> Iterator[Frame]:
    """The frames in order. Raises `UserError` at the first damaged one."""
    return (frame for frame, _ in _timed(image))


def _timed(image: Image.Image) -> Iterator[tuple[Frame, float]]:
    """(frame, when it ends)."""
    with readable("the image"):
        num_frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED_FORMATS else 1
        is_stand_in = num_frames > 1 and image.info.get("default_image", False)  # for viewers that cannot show an APNG
    start_s = 0.0
    for number in range(int(is_stand_in), max(1, num_frames)):
        with readable("the image"):
            image.seek(number)
            image.load()  # WebP and AVIF say only then how long the frame lasts
            duration_ms = image.info.get("duration", 100)
            pixels, handling = _pixels(image)
        frame = Frame(start_s, False, {"handling": handling}, pixels.shape[:2], "", partial(np.array, pixels))
        start_s += (duration_ms if duration_ms > 10 else 100) / 1000  # browsers show 10 ms and less as 100 ms
        yield frame, start_s


def _pixels(image: Image.Image) -> tuple[UInt8[np.ndarray, "Y X 3"], str]:
    """(the loaded frame, upright and over black; how it was handled)."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        grey = np.round(np.asarray(upright).astype(np.float32) * (255 / _white(image))).clip(0, 255).astype(np.uint8)
        inverted = image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO
        return np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=-1), "deep grey scaled to 8 bits"
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = np.asarray(upright.convert("RGBA")).astype(np.uint16)
        return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8), "alpha over black"
    return np.array(upright.convert("RGB")), "as is"


def _white(image: Image.Image) -> int:
    """The value of white in an image of deep grey. Raises `UserError` for 32 bits and floats, which do not say it."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        bits = int(image.tag_v2[_TIFF_BITS][0]) if image.format == "TIFF" else 16
        return 2**bits - 1
    kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
    raise UserError(f"the image has {kind} pixels and does not say which value is white: save it with 8 or 16 bits")
