"""Wilson's interval against its formula, and at the ends."""

from math import sqrt

import pytest
from scipy.stats import norm

from sora_jax.evaluation.scores import Share, share


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (90, 96), (96, 96)])
def test_the_interval_is_wilsons(k, n):
    z, p = norm.ppf(0.975), k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert Share(k, n).interval == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_no_trial_says_nothing():
    assert share([]).interval == (0.0, 1.0)
    assert share([]).as_dict() == {"correct": 0, "total": 0, "rate": None, "low": 0.0, "high": 1.0}


def test_share_counts():
    assert share([True, False, True]) == Share(2, 3)
