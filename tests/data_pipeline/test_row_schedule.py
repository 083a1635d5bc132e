"""Shares of rows are exact, any stretch of rows has nearly the mixture, and counts of rows are those of the places."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.row_schedule import MAX_CYCLE, RowSchedule


@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.3], [3, 1, 1], [0.5, 0.25, 0.125, 0.125], [0.95, 0.05]])
def test_shares_are_exact_and_every_stretch_has_nearly_the_mixture(weights) -> None:
    schedule = RowSchedule(weights)
    shares = [Fraction(str(weight)) / sum(Fraction(str(w)) for w in weights) for weight in weights]
    assert schedule.shares == shares
    length, seen = sum(schedule.counts), Counter()
    for row in range(2 * length + 7):
        assert schedule.rows_before(row) == [seen[member] for member in range(len(weights))]
        member, turn = schedule.place(row)
        assert turn == seen[member]  # each data set's rows come in their order, none left out
        seen[member] += 1
        assert all(abs(seen[m] - (row + 1) * share) < 1 + len(weights) / 2 for m, share in enumerate(shares))
    far = 10**12 * length
    assert schedule.rows_before(far) == [far * share for share in shares] and schedule.place(far)[1] == far * shares[0]


def test_weights_without_a_short_cycle_are_met_nearly() -> None:
    schedule = RowSchedule([1_234_567, 7_654_321, 1])
    found = np.array(list(map(float, schedule.shares)))
    assert np.abs(found - np.array([1_234_567, 7_654_321, 1]) / 8_888_889).max() < 2 / MAX_CYCLE and found.min() > 0


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -1.0], [float("inf")], [float("nan")]])
def test_weights_that_say_nothing_are_user_errors(weights) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        RowSchedule(weights)
