"""Text laid over a picture, without a network: where strokes of hard contrast stand in a line, and stay.

A morphological gradient finds hard edges, a closing joins the strokes of a line, an opening parts lines from what
touches them; a line is wide, low, full of strokes, and crossed by many edges. What is found at one place in
neighbouring samples counts: captions and logos stay where they are. Text that a camera sees in the world moves, or is
softer; some of it is found too. Overlaid text of low contrast, or hardly larger than its strokes, is missed.
"""

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

WIDTH = 480
"""Pictures are looked at no wider than this."""
EDGE = 120  # grey levels between neighbours: outlined captions have 200, furniture and faces hardly this
JOIN, PART = (9, 1), (9, 4)
LEAST_HEIGHT, MOST_HEIGHT = 6, 0.2
LEAST_ASPECT, LEAST_FILL, LEAST_STROKES, LEAST_CROSSINGS = 2.5, 0.5, 0.3, 1.2


def lettering(grey: UInt8[np.ndarray, "Y X"]) -> Bool[np.ndarray, "y x"]:
    """Where lines of text stand, at most `WIDTH` wide."""
    if grey.shape[1] > WIDTH:
        size = (WIDTH, max(8, round(grey.shape[0] * WIDTH / grey.shape[1])))
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))
    round_brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    edges = (cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, round_brush) > EDGE).astype(np.uint8)
    joined = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_RECT, JOIN))
    parted = cv2.morphologyEx(joined, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_RECT, PART))
    found = np.zeros(grey.shape, bool)
    for left, top, width, height, area in cv2.connectedComponentsWithStats(parted, connectivity=8)[2][1:]:
        strokes = edges[top : top + height, left : left + width]
        is_low = LEAST_HEIGHT <= height <= MOST_HEIGHT * len(grey) and width >= LEAST_ASPECT * height
        if is_low and area >= LEAST_FILL * width * height and _is_lettered(strokes):
            found[top : top + height, left : left + width] = True
    return found


def _is_lettered(strokes: UInt8[np.ndarray, "y x"]) -> bool:
    """Full of edges, of which a row crosses several in a length of the line's height."""
    crossings = np.count_nonzero(np.diff(strokes, axis=1), axis=1).mean() * strokes.shape[0] / strokes.shape[1]
    return bool(strokes.mean() >= LEAST_STROKES and crossings >= LEAST_CROSSINGS)


def share_of_text(masks: Sequence[Bool[np.ndarray, "_ _"]]) -> float:
    """The share of the picture that text covers in two neighbouring samples, the mean over them (subtitles come and
    go); 0 for fewer."""
    shares = [float((first & second).mean()) for first, second in pairwise(masks)]
    return float(np.mean(shares)) if shares else 0.0
