"""Which checkpoints of a run are kept: the last N, every M-th step, the best by a held-out metric."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from sora_jax.training.metrics import read_metrics


@dataclasses.dataclass(frozen=True)
class Retention:
    """`keep_last` newest steps, each multiple of `keep_every` (0: none), and the best by `keep_best` ("": none).

    `keep_best` names a metric of the held-out evaluation at the same step, the smallest being the best; `psnr:max` is
    one of which the largest is. Raises UserError for another direction.
    """

    keep_last: int
    keep_every: int = 0
    keep_best: str = ""

    def __post_init__(self) -> None:
        _, _, direction = self.keep_best.partition(":")
        if direction not in ("", "min", "max"):
            raise UserError(f"the metric to keep the best by is '{self.keep_best}'; write NAME, NAME:min or NAME:max")

    def superfluous(self, steps: Sequence[int], scores: Mapping[int, float]) -> list[int]:
        """The steps to delete of all committed ones; `scores` is what `read_scores` found."""
        kept = set(sorted(steps)[-self.keep_last :])
        kept |= {s for s in steps if self.keep_every and s % self.keep_every == 0}
        kept |= {best} if (best := self.best(steps, scores)) is not None else set()
        return sorted(set(steps) - kept)

    def best(self, steps: Sequence[int], scores: Mapping[int, float]) -> int | None:
        """The step with the best score; the newest of equals."""
        sign = 1 if self.keep_best.endswith(":max") else -1
        scored = [(sign * scores[s], s) for s in steps if s in scores]
        return max(scored)[1] if scored else None

    def read_scores(self, run_dir: Path) -> dict[int, float]:
        """Step -> the metric's value in the run's held-out evaluations. Raises UserError if they have others only."""
        if not self.keep_best:
            return {}
        name = self.keep_best.partition(":")[0]
        rows = [row for row in read_metrics(run_dir) if row["kind"] == "eval"]
        known = sorted({metric for row in rows for metric in row} - {"kind", "step"})
        if rows and name not in known:
            raise UserError(
                f"the held-out evaluations of {run_dir} have no metric '{name}' to keep the best by; they have "
                f"{', '.join(known)}"
            )
        return {row["step"]: row[name] for row in rows if row.get(name) is not None}
