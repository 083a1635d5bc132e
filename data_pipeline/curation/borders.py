"""Black bars around a picture: letterbox, pillarbox, both.

Bars come in pairs of about the same size. A bar is a run of rows (or columns) at an edge that are black in every sample
of a shot, and that ends abruptly in a row of which half is lit. A dark scene has neither: its rows are dark, not black,
they grow lit gradually, or in some sample, or on one side. What is in doubt stays: a bar that is left costs some black
pixels, a picture that is cut is lost.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from data_pipeline.curation.observe import Sample

MAX_LIT_IN_BAR = 0.01
MAX_LUMA_IN_BAR = 18.0  # black is 0, and 16 where a limited range was taken for a full one
MIN_LIT_BEYOND = 0.5
MIN_BAR_SHARE = 0.015
MAX_BARS_SHARE = 0.7  # of a side, both together: 16:9 amid 9:16 leaves 0.32 of it
MAX_DIFFERENCE = 0.03  # of the two bars, as a share of the side
# Encoders smear the edge of a bar, and chroma of 4:2:0 is shared by two rows.
INSET_PX = 2

Crop = tuple[int, int, int, int]
Row = Float[np.ndarray, " n"]


def picture_area(samples: Sequence[Sample], height: int, width: int) -> Crop:
    """(top, left, height, width) of the picture; the whole frame where there are no bars. Sides become even if cut."""
    if not samples:
        return 0, 0, height, width
    top, bottom = _bars([s.rows_lit for s in samples], [s.rows_luma for s in samples])
    left, right = _bars([s.columns_lit for s in samples], [s.columns_luma for s in samples])
    new_height, new_width = height - top - bottom, width - left - right
    if top + bottom:
        new_height -= new_height % 2
    if left + right:
        new_width -= new_width % 2
    return top, left, new_height, new_width


def _bars(lit: Sequence[Row], luma: Sequence[Row]) -> tuple[int, int]:
    """Rows (or columns) to take off at the start and at the end, of one shot's samples."""
    lit, luma = np.max(lit, axis=0).astype(np.float32), np.max(luma, axis=0).astype(np.float32)
    start, end = _bar(lit, luma), _bar(lit[::-1], luma[::-1])
    is_pair = start and end and abs(start - end) <= max(4, MAX_DIFFERENCE * len(lit))
    return (start, end) if is_pair and start + end <= MAX_BARS_SHARE * len(lit) else (0, 0)


def _bar(lit: Float[np.ndarray, " n"], luma: Float[np.ndarray, " n"]) -> int:
    size = int(np.argmax(lit > MAX_LIT_IN_BAR))
    if size < max(4, MIN_BAR_SHARE * len(lit)) or luma[: size - INSET_PX].max() > MAX_LUMA_IN_BAR:
        return 0
    beyond = lit[size : size + 2 * INSET_PX + 1].max()
    return size + INSET_PX if beyond >= MIN_LIT_BEYOND else 0
