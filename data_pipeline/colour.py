"""Decoded frames to 8-bit sRGB: matrices and ranges, alpha, and the tone map for HDR.

Standard dynamic range video is taken as it is (its gamma curve read as sRGB's, as browsers do). Where a file does not
say which matrix it used, high definition means BT.709 and the rest BT.601. PQ and HLG are brought to display light,
white at 203 nits (ITU-R BT.2408), the gamut to BT.709, highlights rolled off to the peak of 1,000 nits, then sRGB.
Alpha is composited over black.
"""

from functools import cache

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from jaxtyping import Float32, UInt8, UInt16

REFERENCE_WHITE_NITS = 203.0
PEAK_NITS = 1000.0
KNEE = 0.75  # relative to reference white: below it the tone map is the identity

_FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
_PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 12: "display-p3"}
_TRANSFERS = {1: "bt709", 6: "smpte170m", 8: "linear", 13: "srgb", 14: "bt2020", 15: "bt2020", 16: "pq", 18: "hlg"}
_MATRICES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020cl"}
_SWSCALE_MATRICES = {
    "bt709": Colorspace.ITU709,
    "bt601": Colorspace.ITU601,
    "fcc": Colorspace.FCC,
    "smpte240m": Colorspace.SMPTE240M,
    "bt2020": Colorspace.BT2020,
    "bt2020cl": Colorspace.BT2020,
}
_TO_BT709 = {
    "bt2020": ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    "display-p3": ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}


def describe(frame: av.VideoFrame) -> dict[str, str]:
    """Primaries, transfer, matrix and range as found in the file, and how `to_srgb` handles the frame."""
    primaries = _PRIMARIES.get(int(frame.color_primaries), "unspecified")
    transfer = _TRANSFERS.get(int(frame.color_trc), "unspecified")
    found = "rgb" if frame.format.is_rgb else _MATRICES.get(int(frame.colorspace), "unspecified")
    full = frame.color_range == ColorRange.JPEG or "yuvj" in frame.format.name
    handling = []
    if found == "unspecified":
        handling.append(f"{_matrix(frame)} matrix assumed")
    if transfer in ("pq", "hlg"):
        handling.append(f"tone-mapped from {transfer}")
    elif primaries in _TO_BT709:
        handling.append(f"gamut mapped from {primaries}")
    if _has_alpha(frame):
        handling.append("alpha over black")
    return {
        "primaries": primaries,
        "transfer": transfer,
        "matrix": found,
        "range": "full" if full else "limited",
        "handling": ", ".join(handling) or "as is",
    }


def to_srgb(frame: av.VideoFrame, height: int, width: int, reformatter: VideoReformatter) -> UInt8[np.ndarray, "Y X 3"]:
    """The frame as 8-bit sRGB, scaled to `height` x `width` (for non-square pixels), before any rotation.

    `reformatter` keeps its tables from frame to frame of one video.
    """
    primaries = _PRIMARIES.get(int(frame.color_primaries), "")
    transfer = _TRANSFERS.get(int(frame.color_trc), "")
    if transfer in ("pq", "hlg") or primaries in _TO_BT709:
        return _map_to_srgb(_reformat(frame, height, width, "rgb48le", reformatter), primaries, transfer)
    if _has_alpha(frame):
        rgba = _reformat(frame, height, width, "rgba", reformatter).astype(np.uint16)
        return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    return _reformat(frame, height, width, "rgb24", reformatter)


def _has_alpha(frame: av.VideoFrame) -> bool:
    return _format_has_alpha(frame.format.name)


@cache
def _format_has_alpha(name: str) -> bool:
    pixels = av.VideoFormat(name)
    return pixels.has_palette or any(component.is_alpha for component in pixels.components)


def _matrix(frame: av.VideoFrame) -> str:
    named = _MATRICES.get(int(frame.colorspace), "")
    if named in _SWSCALE_MATRICES:
        return named
    return "bt709" if frame.width >= 1280 or frame.height > 576 else "bt601"


def _reformat(
    frame: av.VideoFrame, height: int, width: int, pixel_format: str, reformatter: VideoReformatter
) -> np.ndarray:
    full = frame.color_range == ColorRange.JPEG or "yuvj" in frame.format.name
    converted = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format=pixel_format,
        src_colorspace=_SWSCALE_MATRICES[_matrix(frame)],
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_FLAGS,
        threads=1,
    )
    return converted.to_ndarray()


def from_srgb(frame: UInt8[np.ndarray, "Y X 3"], pixel_format: str) -> av.VideoFrame:
    """An RGB frame as limited-range BT.709 `pixel_format`, tagged as such."""
    converted = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
        format=pixel_format,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        dst_color_trc=ColorTrc.BT709,
        dst_color_primaries=ColorPrimaries.BT709,
        interpolation=_FLAGS,
        threads=1,
    )
    converted.pts = None
    return converted


def _map_to_srgb(rgb: UInt16[np.ndarray, "Y X 3"], primaries: str, transfer: str) -> UInt8[np.ndarray, "Y X 3"]:
    """Display light relative to reference white, into the BT.709 gamut, tone-mapped by the largest channel."""
    light = _light_table(transfer)[rgb]
    if transfer == "hlg":  # the system gamma of a 1,000 nit display works on scene luminance
        luminance = light @ np.float32([0.2627, 0.6780, 0.0593])
        light = light * (np.maximum(luminance, 1e-6) ** 0.2)[..., None] * np.float32(PEAK_NITS / REFERENCE_WHITE_NITS)
    matrix = _TO_BT709.get(primaries, _TO_BT709["bt2020"])
    light = np.maximum(light @ np.float32(matrix).T, 0.0)
    if transfer in ("pq", "hlg"):
        largest = np.maximum(light.max(-1, keepdims=True), 1e-6)
        light = light * (tone_curve(largest) / largest)
    return _srgb_table()[np.minimum(light * 65535.0 + 0.5, 65535.0).astype(np.uint16)]


def tone_curve(light: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Identity up to `KNEE`, then an extended Reinhard shoulder that reaches 1 at the peak; smooth and monotone."""
    peak = (PEAK_NITS / REFERENCE_WHITE_NITS - KNEE) / (1 - KNEE)
    over = np.clip((light - KNEE) / (1 - KNEE), 0.0, peak)
    return np.where(light <= KNEE, light, KNEE + (1 - KNEE) * over * (1 + over / peak**2) / (1 + over))


@cache
def _light_table(transfer: str) -> Float32[np.ndarray, " 65536"]:
    """16-bit code values to light: PQ relative to reference white, HLG scene light, others by the sRGB curve."""
    code = np.linspace(0, 1, 65536)
    if transfer == "pq":  # SMPTE ST 2084
        root = code ** (1 / 78.84375)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return (light * 10000 / REFERENCE_WHITE_NITS).astype(np.float32)
    if transfer == "hlg":  # ARIB STD-B67
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _srgb_table() -> UInt8[np.ndarray, " 65536"]:
    light = np.linspace(0, 1, 65536)
    code = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(code * 255).astype(np.uint8)
