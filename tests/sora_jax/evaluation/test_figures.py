"""Pictures for the page: nothing fixed in colour, nothing outside, frames where they belong."""

import base64
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
from PIL import Image

from sora_jax.evaluation.figures import STRIP_GAP_PIXELS, curves_svg, frame_strip, png_uri


def test_curves_are_one_svg_that_follows_the_text_colour():
    x = list(range(40))
    svg = curves_svg({"training": (x, [1 / (1 + i) for i in x]), "held out": (x, x)}, "loss", log_y=True, smooth=True)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "currentColor" in svg and "http://www.w3.org/2000/svg" in svg and "<image" not in svg
    assert "#000000" not in svg and "#ffffff" not in svg
    assert "training" in svg and "held out" in svg


def test_a_strip_shows_first_and_last_frame():
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    strip = frame_strip(frames, num_frames=3)
    assert strip.shape == (4, 3 * 6 + 2 * STRIP_GAP_PIXELS, 4)
    assert [int(strip[0, i * (6 + STRIP_GAP_PIXELS), 0]) for i in range(3)] == [0, 4, 8]
    assert strip[0, 6, 3] == 0 and strip[0, 0, 3] == 255
    assert frame_strip(frames[:1]).shape == (4, 6, 4)


def test_png_uris_decode_to_the_image():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    kind, data = png_uri(image).split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image)
