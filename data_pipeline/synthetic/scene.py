"""What a synthetic clip consists of: plain data from which it is rendered, captioned and written down exactly.

Lengths are pixels, times seconds; x to the right, y downwards; the centre of the top left pixel is (0.5, 0.5).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32


@dataclass(frozen=True)
class Body:
    """An object. `track` is its centroid in world pixels (screen pixels where the camera is static), a row a frame.

    `direction` is a key of the palette's directions, or None at rest; `motion` is what it does: "rest", "straight",
    "bounce", "fall", "collide" or a cycle.
    """

    shape: str
    colour: str
    size_px: float
    motion: str
    direction: str | None
    speed_px_per_s: float
    track: Float[np.ndarray, "T 2"]


@dataclass(frozen=True)
class Occluder:
    """A grey bar in front of the bodies: (left, top, right, bottom) and its grey value."""

    box: tuple[float, float, float, float]
    grey: int


@dataclass(frozen=True)
class Camera:
    """A frame shows the world point `centre + rotation(angle) (pixel - centre) / zoom + offset` at each pixel."""

    kind: str
    offset: Float32[np.ndarray, "T 2"]
    zoom: Float32[np.ndarray, " T"]
    angle: Float32[np.ndarray, " T"]
    words: str = ""

    @staticmethod
    def static(num_frames: int) -> "Camera":
        zeros = np.zeros(num_frames, np.float32)
        return Camera("static", np.zeros((num_frames, 2), np.float32), zeros + 1, zeros)


@dataclass(frozen=True)
class Background:
    """A procedural texture: `base` plus `amplitude` times a pattern that waves with `frequencies` (radians/pixel)."""

    kind: str
    base: tuple[float, float, float]
    amplitude: float
    frequencies: Float32[np.ndarray, "k 2"]
    phases: Float32[np.ndarray, " k"]


@dataclass(frozen=True)
class Scene:
    world: str
    height: int
    width: int
    num_frames: int
    fps: float
    bodies: tuple[Body, ...]
    background: Background
    camera: Camera
    occluder: Occluder | None = None
    physics: str = "straight"

    def screen_track(self, body: Body) -> Float[np.ndarray, "T 2"]:
        """The body's centroid on the screen: the camera's map inverted."""
        centre = np.array([self.width / 2, self.height / 2])
        relative = (body.track - self.camera.offset - centre) * self.camera.zoom[:, None]
        cos, sin = np.cos(self.camera.angle), np.sin(self.camera.angle)
        x = cos * relative[:, 0] + sin * relative[:, 1]
        y = -sin * relative[:, 0] + cos * relative[:, 1]
        return np.stack([x, y], -1) + centre
