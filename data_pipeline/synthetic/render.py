"""Scenes to pixels: signed distances, antialiased over one pixel, all frames of a clip at once."""

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.synthetic.palette import COLOURS
from data_pipeline.synthetic.scene import Background, Scene
from data_pipeline.synthetic.shapes import DISTANCES

Field = Float32[np.ndarray, "#T Y X"]


def render(scene: Scene) -> tuple[UInt8[np.ndarray, "T Y X 3"], Float32[np.ndarray, "n T"]]:
    """The frames, and for every body the share of its area that is seen in each frame."""
    x, y = _world_grid(scene)
    pixels = _background(scene.background, x, y)
    if len(pixels) < scene.num_frames:
        pixels = np.repeat(pixels, scene.num_frames, axis=0)
    zoom = scene.camera.zoom[:, None, None]
    covers = []
    for body in scene.bodies:
        track = body.track.astype(np.float32)[:, :, None, None] / np.float32(body.size_px)
        size = np.float32(body.size_px)
        distance = DISTANCES[body.shape](x / size - track[:, 0], y / size - track[:, 1]) * size * zoom
        covers.append(np.clip(0.5 - distance, 0, 1))
        pixels += covers[-1][..., None] * (np.float32(COLOURS[body.colour]) - pixels)
    bar = None
    if scene.occluder is not None:
        left, top, right, bottom = (np.float32(edge) for edge in scene.occluder.box)
        distance = np.maximum(np.maximum(left - x, x - right), np.maximum(top - y, y - bottom)) * zoom
        bar = np.clip(0.5 - distance, 0, 1)
        pixels += bar[..., None] * (np.float32(scene.occluder.grey) - pixels)
    return (pixels + 0.5).astype(np.uint8), _visible(scene, covers, bar)


def _world_grid(scene: Scene) -> tuple[Field, Field]:
    """World x and y of every pixel centre; one frame is enough for a static camera."""
    centre_x, centre_y = scene.width / 2, scene.height / 2
    x = (np.arange(scene.width, dtype=np.float32) + np.float32(0.5 - centre_x))[None, None, :]
    y = (np.arange(scene.height, dtype=np.float32) + np.float32(0.5 - centre_y))[None, :, None]
    if scene.camera.kind == "static":
        flat = np.zeros((1, scene.height, scene.width), np.float32)
        return x + flat + np.float32(centre_x), y + flat + np.float32(centre_y)
    cos, sin = (f(scene.camera.angle)[:, None, None] / scene.camera.zoom[:, None, None] for f in (np.cos, np.sin))
    offset_x, offset_y = (scene.camera.offset[:, axis, None, None] for axis in (0, 1))
    world_x = cos * x - sin * y + offset_x + np.float32(centre_x)
    world_y = sin * x + cos * y + offset_y + np.float32(centre_y)
    return world_x.astype(np.float32), world_y.astype(np.float32)


def _background(background: Background, x: Field, y: Field) -> Float32[np.ndarray, "#T Y X 3"]:
    waves = [
        np.sin(x * fx + y * fy + phase)
        for (fx, fy), phase in zip(background.frequencies, background.phases, strict=True)
    ]
    if background.kind == "checker":
        pattern = np.tanh(3 * waves[0] * waves[1])
    else:
        pattern = np.float32(sum(waves)) / max(len(waves), 1) + np.zeros_like(x)
    pattern = (np.float32(background.amplitude) * pattern).astype(np.float32)
    return np.clip(np.float32(background.base) + pattern[..., None], 0, 255)


def _visible(scene: Scene, covers: list[Field], bar: Field | None) -> Float32[np.ndarray, "n T"]:
    """Seen area over whole area. Bodies later in the list and the occluder are in front."""
    shares = []
    in_front = np.zeros_like(covers[0]) if bar is None else bar + np.zeros_like(covers[0])
    for body, cover in zip(reversed(scene.bodies), reversed(covers), strict=True):
        whole = _area(body.shape) * body.size_px**2 * scene.camera.zoom**2
        shares.append(np.minimum((cover * (1 - in_front)).sum((1, 2)) / whole, 1))
        in_front = in_front + cover * (1 - in_front)
    return np.stack(shares[::-1]).astype(np.float32)


def _area(shape: str) -> float:
    """Area of a shape of size 1, by counting a fine grid once."""
    if shape not in _AREAS:
        grid = np.linspace(-0.7, 0.7, 561, dtype=np.float32)
        inside = DISTANCES[shape](grid[None, :], grid[:, None]) < 0
        _AREAS[shape] = float(inside.mean() * (grid[-1] - grid[0]) ** 2)
    return _AREAS[shape]


_AREAS: dict[str, float] = {}
