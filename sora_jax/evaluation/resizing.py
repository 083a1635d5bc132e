"""Resizes as the published evaluations do them, in float32: which pixels, which weights, in which order.

Scores move by tens of percent with the filter (Parmar, Zhang & Zhu 2022), so each is the arithmetic of its original:
TensorFlow 1's `resize_bilinear`, whose first pixels coincide; PyTorch's `interpolate`, whose pictures' edges coincide;
the same with antialiasing; and Pillow's bicubic filter on floats, one channel after another.
"""

import math

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

Pixels = Float32[np.ndarray, "T _ _ 3"]
Taps = tuple[Int64[np.ndarray, "out taps"], Float32[np.ndarray, "out taps"]]
"""For every pixel of a result, the pixels that it is made of and their weights."""


def tf1_bilinear(frames: Pixels, height: int, width: int) -> Pixels:
    """`tf.image.resize_bilinear` of TensorFlow 1, `align_corners=False`: result pixel i lies at i * in / out."""
    columns, rows = (_tf1_taps(n, m) for n, m in ((frames.shape[2], width), (frames.shape[1], height)))
    frames = _lerp(frames, *columns, axis=2)
    return _lerp(frames, *rows, axis=1)


def _tf1_taps(length: int, wanted: int) -> tuple[Int64[np.ndarray, "out 2"], Float32[np.ndarray, " out"]]:
    places = np.arange(wanted, dtype=np.float32) * np.float32(length / wanted)
    low = places.astype(np.int64)
    high = np.minimum(low + 1, length - 1)
    return np.stack([low, high], 1), places - low.astype(np.float32)


def _lerp(frames: np.ndarray, places: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """low + (high - low) * weight, as TensorFlow writes it."""
    low, high = (np.take(frames, places[:, i], axis) for i in range(2))
    return low + (high - low) * _along(weights, axis)


def torch_bilinear(frames: Pixels, height: int, width: int) -> Pixels:
    """`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: no antialiasing."""
    frames = _combine(frames, _torch_taps(frames.shape[2], width), axis=2)
    return _combine(frames, _torch_taps(frames.shape[1], height), axis=1)


def _torch_taps(length: int, wanted: int) -> Taps:
    """Result pixel i has its centre at (i + 1/2) in / out - 1/2, but not before the first."""
    scale = np.float32(length) / np.float32(wanted)
    places = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    low = np.minimum(places.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    weight = np.clip(places - low.astype(np.float32), 0, 1)
    return np.stack([low, high], 1), np.stack([np.float32(1) - weight, weight], 1)


def torch_antialiased(frames: Pixels, height: int, width: int) -> Pixels:
    """`torch.nn.functional.interpolate(mode="bilinear", antialias=True)`: a triangle as wide as two result pixels."""
    frames = _combine(frames, _triangle_taps(frames.shape[2], width), axis=2)
    return _combine(frames, _triangle_taps(frames.shape[1], height), axis=1)


def _triangle_taps(length: int, wanted: int) -> Taps:
    scale = length / wanted
    reach = max(scale, 1.0)
    num_taps = math.ceil(reach) * 2 + 1
    centres = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), length)
    places = first[:, None] + np.arange(num_taps)
    weights = np.maximum(1 - np.abs(places - centres[:, None] + 0.5) / reach, 0) * (places < last[:, None])
    weights /= weights.sum(1, keepdims=True)
    return np.minimum(places, length - 1), weights.astype(np.float32)


def _combine(frames: np.ndarray, taps: Taps, axis: int) -> np.ndarray:
    """The weighted sum of the taps, one after another."""
    places, weights = taps
    if places.shape[0] == frames.shape[axis] and np.array_equal(weights[:, 0], np.ones(len(weights))):
        return frames  # of the size already
    total = np.take(frames, places[:, 0], axis) * _along(weights[:, 0], axis)
    for tap in range(1, places.shape[1]):
        total += np.take(frames, places[:, tap], axis) * _along(weights[:, tap], axis)
    return total


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    return values.reshape([-1 if dim == axis else 1 for dim in range(4)])


def pil_bicubic(frames: Pixels, height: int, width: int) -> Pixels:
    """Pillow's bicubic filter (antialiased) on each channel as floats, as clean-fid does; not clipped, not rounded."""
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), Image.Resampling.BICUBIC))
        for frame in frames
        for channel in np.moveaxis(frame, -1, 0)
    ]
    return np.moveaxis(np.stack(resized).reshape(len(frames), 3, height, width), 1, -1)


def pil_bicubic_levels(
    frames: UInt8[np.ndarray, "T _ _ 3"], height: int, width: int
) -> UInt8[np.ndarray, "T {height} {width} 3"]:
    """The same filter on whole levels, as pictures are usually resized: clipped and rounded."""
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])
