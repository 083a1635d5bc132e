"""Black bars around a picture: letterbox, pillarbox, both.

A bar is a run of rows (or columns) at an edge that stay dark in every sample of a shot, and that ends abruptly in a row
of which much is lit. A dark scene has neither: its rows grow lit gradually, or in some sample.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from data_pipeline.curation.observe import Sample

MAX_LIT_IN_BAR = 0.01
MIN_LIT_BEYOND = 0.25
MIN_BAR_SHARE = 0.015
# Encoders smear the edge of a bar, and chroma of 4:2:0 is shared by two rows.
INSET_PX = 2

Crop = tuple[int, int, int, int]


def picture_area(samples: Sequence[Sample], height: int, width: int) -> Crop:
    """(top, left, height, width) of the picture; the whole frame where there are no bars. Sides become even if cut."""
    if not samples:
        return 0, 0, height, width
    rows = np.max([sample.rows_lit for sample in samples], axis=0).astype(np.float32)
    columns = np.max([sample.columns_lit for sample in samples], axis=0).astype(np.float32)
    top, bottom = _bars(rows)
    left, right = _bars(columns)
    new_height, new_width = height - top - bottom, width - left - right
    if top + bottom:
        new_height -= new_height % 2
    if left + right:
        new_width -= new_width % 2
    return top, left, new_height, new_width


def _bars(lit: Float[np.ndarray, " n"]) -> tuple[int, int]:
    """Rows (or columns) to take off at the start and at the end."""
    return _bar(lit), _bar(lit[::-1])


def _bar(lit: Float[np.ndarray, " n"]) -> int:
    size = int(np.argmax(lit > MAX_LIT_IN_BAR))
    if size < max(4, MIN_BAR_SHARE * len(lit)) or size > 0.45 * len(lit):
        return 0
    beyond = lit[size : size + 2 * INSET_PX + 1].max()
    return size + INSET_PX if beyond >= MIN_LIT_BEYOND else 0
