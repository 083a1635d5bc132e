"""The order in which a run visits clips: an endless sequence of epochs with random access.

Clips are numbered by length. An epoch goes round the length strata again and again, in an order that spreads any
stretch of it evenly over all lengths, and takes from each stratum the clip that a seeded permutation gives for the
round. So every clip comes once an epoch, and any thousand consecutive clips are nearly alike in total length.
"""

import functools
import math

import numpy as np
from jaxtyping import Int64

from data_pipeline.permutation import permute

MAX_STRATA = 1_024
MIN_STRATUM_CLIPS = 8  # below this, neighbours in length would meet in the same row every epoch
GOLDEN = (math.sqrt(5) - 1) / 2


class EpochOrder:
    """An endless sequence of epochs over `num_clips` clips that are sorted by length; random access."""

    def __init__(self, num_clips: int, key: int):
        self.num_clips, self._key = num_clips, key
        self._strata = int(np.clip(num_clips // MIN_STRATUM_CLIPS, 1, MAX_STRATA))
        self._starts = np.arange(self._strata + 1) * num_clips // self._strata
        self._rounds = math.ceil(num_clips / self._strata)
        self._visits = np.arange(self._strata) * _coprime_stride(self._strata) % self._strata
        sizes = np.diff(self._starts)
        self._last_visits = self._visits[sizes[self._visits] == self._rounds]

    def clips(self, positions: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(epoch, clip) of each position; clips are numbered by length."""
        epoch, inside = np.divmod(positions, self.num_clips)
        turn, visit = np.divmod(inside, self._strata)
        last = turn == self._rounds - 1
        stratum = self._visits[visit]
        stratum[last] = self._last_visits[visit[last]]
        start = self._starts[stratum]
        size = self._starts[stratum + 1] - start
        return epoch, start + permute(self._key, epoch * self._strata + stratum, size, turn)


@functools.cache
def _coprime_stride(length: int) -> int:
    """A stride near the golden section of `length`: visiting by it spreads any stretch evenly."""
    stride = max(1, round(length * GOLDEN))
    while math.gcd(stride, length) != 1:
        stride += 1
    return stride
