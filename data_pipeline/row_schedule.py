"""Which of several data sets each row of a run comes from, as arithmetic.

    weights 3 : 1 ─► a cycle of rows  A B A A | A B A A | …  ─► row x of the run is row m of one data set

The shares are those of rows, and so of tokens up to the padding, which the plan keeps below a hundredth: rows are what
can be counted exactly. A cycle holds each data set exactly as often as its weight says, spread evenly, so that
neighbouring rows (the ranks of a step) have nearly the same mixture; how often a data set came before row x is a
division and a table, whatever x is.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from data_pipeline.errors import UserError

MAX_CYCLE = 100_000


class RowSchedule:
    """Rows in an endless cycle. Weights like 0.7 are taken as written, as decimals."""

    def __init__(self, weights: Sequence[float]):
        """Raises UserError for a weight that is not above 0."""
        if not weights or any(not 0 < weight < math.inf for weight in weights):
            raise UserError(f"the weights of a mixture are {list(weights)}, but each must be above 0")
        self.counts = _cycle_counts([Fraction(str(weight)) for weight in weights])
        member = np.repeat(np.arange(len(self.counts)), self.counts)
        turn = np.concatenate([np.arange(count) for count in self.counts])
        order = np.argsort((turn + 0.5) / np.asarray(self.counts)[member], kind="stable")
        self._member, self._turn = member[order], turn[order]

    @property
    def shares(self) -> list[Fraction]:
        """Of each data set, exactly."""
        return [Fraction(count, len(self._member)) for count in self.counts]

    def place(self, row: int) -> tuple[int, int]:
        """(data set, how many of its rows came before) of row `row` of the run."""
        cycle, i = divmod(row, len(self._member))
        member = int(self._member[i])
        return member, cycle * self.counts[member] + int(self._turn[i])

    def rows_before(self, row: int) -> list[int]:
        """How many of the rows `[0, row)` come from each data set."""
        cycle, i = divmod(row, len(self._member))
        begun = np.bincount(self._member[:i], minlength=len(self.counts))
        return [cycle * count + int(more) for count, more in zip(self.counts, begun, strict=True)]


def _cycle_counts(weights: Sequence[Fraction]) -> list[int]:
    """Rows of each data set in the shortest cycle of exactly these shares; of a cycle of MAX_CYCLE rows, nearly, where
    that would be longer."""
    shares = [weight / sum(weights) for weight in weights]
    length = math.lcm(*(share.denominator for share in shares))
    if length <= MAX_CYCLE:
        return [int(share * length) for share in shares]
    return [max(1, round(share * MAX_CYCLE)) for share in shares]
