"""The closed vocabularies of the synthetic worlds: what captions say and what probes look for."""

# sRGB values far apart from each other and from the backgrounds (which stay grey and below half saturation).
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 40),
    "green": (38, 182, 58),
    "blue": (44, 82, 226),
    "yellow": (240, 212, 40),
    "purple": (158, 58, 204),
    "orange": (246, 134, 28),
    "cyan": (44, 204, 214),
    "pink": (246, 120, 180),
    "white": (240, 240, 240),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "diamond", "ring", "cross")

# Unit vectors in pixels: x grows to the right, y downwards.
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
DIAGONALS: dict[str, tuple[float, float]] = {
    "up and to the left": (-0.7071, -0.7071),
    "up and to the right": (0.7071, -0.7071),
    "down and to the left": (-0.7071, 0.7071),
    "down and to the right": (0.7071, 0.7071),
}
QUICKSTART_COLOURS = ("red", "green", "blue", "yellow")
QUICKSTART_SHAPES = ("circle", "square", "triangle")
DEMO_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
DEMO_SHAPES = ("circle", "square", "triangle", "star")
