"""Signed distances to the shapes' outlines, in units of the shape's size, origin at its centroid (y downwards).

Negative inside. Corners are mitred (distance to the nearest edge line), which is what antialiasing needs.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

Plane = Float32[np.ndarray, "*#grid"]


def _circle(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y) - np.float32(0.5)


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.5)


def _triangle(x: Plane, y: Plane) -> Plane:
    """Equilateral, height 1, pointing up: the centroid is a third of the height above the base."""
    sides = np.float32(3**0.5 / 2) * np.abs(x) - np.float32(0.5) * y
    return np.maximum(sides, y) - np.float32(1 / 3)


def _diamond(x: Plane, y: Plane) -> Plane:
    return (np.abs(x) + np.abs(y) - np.float32(0.6)) * np.float32(0.5**0.5)


def _ring(x: Plane, y: Plane) -> Plane:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.37)) - np.float32(0.13)


def _cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    long, thin = np.float32(0.5), np.float32(0.17)
    return np.minimum(np.maximum(x - long, y - thin), np.maximum(x - thin, y - long))


def _star(x: Plane, y: Plane) -> Plane:
    """Five points on a circle of radius 0.58: fold the plane into one half point, then one edge is left."""
    radius, inner = 0.58, 0.27
    sector = np.pi / 5
    angle = np.arctan2(x, -y)
    folded = np.abs((angle + sector) % (2 * sector) - sector)
    distance = np.sqrt(x * x + y * y)
    along, across = distance * np.cos(folded), distance * np.sin(folded)
    edge_x, edge_y = inner * np.cos(sector) - radius, inner * np.sin(sector)
    length = np.hypot(edge_x, edge_y)
    return (((along - radius) * edge_y - across * edge_x) / length).astype(np.float32)


DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "diamond": _diamond,
    "ring": _ring,
    "cross": _cross,
}
# How far a shape of size 1 reaches to the left, right, up and down of its centroid.
EXTENTS: dict[str, tuple[float, float, float, float]] = {
    "circle": (0.5, 0.5, 0.5, 0.5),
    "square": (0.5, 0.5, 0.5, 0.5),
    "triangle": (0.578, 0.578, 0.667, 0.334),
    "star": (0.58, 0.58, 0.58, 0.58),
    "diamond": (0.6, 0.6, 0.6, 0.6),
    "ring": (0.5, 0.5, 0.5, 0.5),
    "cross": (0.5, 0.5, 0.5, 0.5),
}
