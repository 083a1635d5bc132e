"""A share of successes with its uncertainty: Wilson's score interval (E. B. Wilson, 1927).

Unlike the normal interval it stays inside [0, 1] and is honest at 96 of 96.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scipy.stats import binomtest

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """`num_correct` of `num_total`, as a rate with a 95% Wilson interval [low, high]."""

    num_correct: int
    num_total: int

    @property
    def rate(self) -> float:
        return self.num_correct / self.num_total if self.num_total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The interval; without a single trial it says so: [0, 1]."""
        if not self.num_total:
            return 0.0, 1.0
        found = binomtest(self.num_correct, self.num_total).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    def as_dict(self) -> dict[str, float | int]:
        low, high = self.interval
        rate = self.rate if self.num_total else None
        return {"correct": self.num_correct, "total": self.num_total, "rate": rate, "low": low, "high": high}


def share(outcomes: Iterable[bool]) -> Share:
    """The share of True among `outcomes`."""
    outcomes = list(outcomes)
    return Share(sum(outcomes), len(outcomes))
