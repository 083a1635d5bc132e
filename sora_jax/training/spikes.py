"""Loss spikes: which steps are not applied, and when a run goes back to a checkpoint. Three defences, in this order:

1. A step whose loss or gradient is not finite is not applied (`step.py`).
2. Nor is one whose loss or gradient norm lies more than `spike_sigma` deviations above the recent ones: the skipped
   step of OLMo 2 (arXiv 2501.00656, section 3: 6 deviations, 128 steps), here with median and median deviation, which
   a spike does not move.
3. When `rollback_after` of the last twice as many steps were not applied, the run goes back to the newest checkpoint
   before the first of them and leaves out the batches that follow it, `rollback_skip` at least: the recipe of PaLM
   (arXiv 2204.02311, section 5.1: about 100 steps back, 200 to 500 batches skipped).

Everything is a function of the steps, so that a resumed run does the same: a step's limits know the steps up to
`IN_FLIGHT` before the last one dispatched; the history is saved with each checkpoint; and `skipped.json` in the run
directory lists the batches that were left out. Checkpoints of undone steps are renamed (`STEP.aside…`).
"""

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipeline.errors import UserError, from_os_error
from sora_jax.config import TrainConfig
from sora_jax.training.step_folders import CHECKPOINTS, set_aside
from sora_jax.training.tiers import fast_tier

SKIPPED = "skipped.json"
WINDOW, LEAST = 128, 32
"""So many steps make the median; with fewer than LEAST there is no limit yet."""
MAD_TO_SIGMA = 1.4826
LEAST_DEVIATION = 0.01
"""Of the median: a loss that hardly varies is no reason to call the next one a spike."""


class SpikeError(UserError):
    """The run was rolled back as often as it may be."""


@dataclasses.dataclass(frozen=True)
class Skip:
    """After step `after` the run goes on with step `to` + 1; steps up to `undone` had been trained and were undone."""

    after: int
    to: int
    undone: int
    reason: str


class RollBack(Exception):
    """The run must go back: `skip` says from where, and what it leaves out."""

    def __init__(self, skip: Skip) -> None:
        super().__init__(skip.reason)
        self.skip = skip


@dataclasses.dataclass(frozen=True)
class Judged:
    """What one step was: its losses and gradient norms, a pair a parameter group."""

    step: int
    applied: bool
    values: tuple[tuple[float, float], ...]
    limits: np.ndarray | None = None
    """[groups, 2], as `values`; None where there was no limit"""


class History:
    """The last steps, and what they allow the next one.

    `groups` are the task's, in its order; `saved` is what `to_json` gave when a checkpoint was made.
    """

    def __init__(self, config: TrainConfig, groups: Sequence[str], saved: Iterable[Iterable[Any]] = ()) -> None:
        self._config, self._names = config, [("loss", "grad_norm")]
        self._names += [(f"loss/{group}", f"grad_norm/{group}") for group in groups[1:]]
        self._limits: collections.deque[np.ndarray | None] = collections.deque()
        self._steps: collections.deque[Judged] = collections.deque(maxlen=max(WINDOW + 8, 2 * config.rollback_after))
        for step, applied, values in saved:
            self._steps.append(Judged(step, bool(applied), tuple((_float(a), _float(b)) for a, b in values)))

    def to_json(self) -> list[list[Any]]:
        """Numbers that are not finite become None."""
        finite = lambda x: x if math.isfinite(x) else None  # noqa: E731
        return [[s.step, int(s.applied), [[finite(a), finite(b)] for a, b in s.values]] for s in self._steps]

    def add(self, step: int, metrics: Mapping[str, float]) -> Judged:
        """A step that has ended, with its metrics by name; steps end in the order in which `limits` was asked."""
        values = tuple((metrics[loss], metrics[norm]) for loss, norm in self._names)
        self._steps.append(Judged(step, not metrics["skipped"], values, self._limits.popleft()))
        return self._steps[-1]

    def limits(self, num_unknown: int, since: int = 0) -> Float[np.ndarray, "groups 2"] | None:
        """The highest loss and gradient norm of each group at which the next step is applied; None without a limit.

        Only steps after `since` count: other data has other losses. The last `num_unknown` steps are left out of
        account, because another start may not know them yet.
        """
        self._limits.append(self._limits_of_next(num_unknown, since) if self._config.spike_sigma else None)
        return self._limits[-1]

    def _limits_of_next(self, num_unknown: int, since: int) -> np.ndarray:
        known = list(self._steps)[: max(0, len(self._steps) - num_unknown)][-WINDOW:]
        rows = np.array([s.values for s in known if s.step > since and np.isfinite(s.values).all()], np.float64)
        if len(rows) < LEAST:
            return np.full((len(self._names), 2), np.inf, np.float32)
        median = np.median(rows, axis=0)
        deviation = np.maximum(MAD_TO_SIGMA * np.median(np.abs(rows - median), axis=0), LEAST_DEVIATION * abs(median))
        return (median + self._config.spike_sigma * deviation).astype(np.float32)

    def first_of_spike(self) -> int | None:
        """The first of the steps that call for a roll-back, if `rollback_after` of the last twice as many do."""
        after = self._config.rollback_after
        bad = [s.step for s in list(self._steps)[-2 * after :] if not s.applied] if after else []
        return bad[0] if bad and len(bad) >= after else None


def plan_rollback(
    config: TrainConfig, first: int, last: int, in_flight: int, committed: Iterable[int], past: Iterable[Skip]
) -> Skip | None:
    """How to leave a spike of which step `first` was the first and `last` the last to end, with `in_flight` behind it.

    None where there is no checkpoint before it, or the run ends anyway. Raises SpikeError after `max_rollbacks`.
    """
    past = list(past)
    good = [step for step in committed if step < first]
    # What spikes again may have come along from the checkpoint that the run went back to: one further back, then.
    good = [step for step in good if step not in {skip.after for skip in past}] or good
    undone = last + in_flight
    to = min(max(undone + 1, max(good, default=0) + config.rollback_skip), config.num_steps - 1)
    if not good or to <= undone:
        return None
    if len(past) >= config.max_rollbacks:
        raise SpikeError(
            f"steps {first} to {last} spike, and the run was rolled back {len(past)} times already "
            f"(config.train.max_rollbacks = {config.max_rollbacks}); raise it to go on, or start from checkpoint "
            f"{good[-1]} with --init_from and a lower learning rate"
        )
    reason = f"at least {config.rollback_after} of the steps {first} to {last} were not applied"
    return Skip(max(good), to, undone, reason)


def read_skips(workdir: Path) -> list[Skip]:
    """What the run in `workdir` leaves out, oldest first. Raises UserError for a damaged file."""
    path = workdir / SKIPPED
    try:
        return [Skip(**row) for row in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); it says which steps the run leaves out: restore it") from error


def record_skip(workdir: Path, skip: Skip) -> None:
    """Adds to what the run leaves out, so that every later start does the same."""
    rows = [dataclasses.asdict(s) for s in (*read_skips(workdir), skip)]
    temporary = workdir / f"{SKIPPED}.tmp"
    try:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
        temporary.replace(workdir / SKIPPED)
    except OSError as error:
        raise from_os_error(error, f"writing {workdir / SKIPPED}") from error


def undo(workdir: Path, fast_dir: str, skip: Skip) -> None:
    """Sets the undone checkpoints aside in both tiers and records what the run leaves out; one process does it.

    A process that is killed between the two does it all again: the run goes on from the same step, into the same spike.
    """
    for tier in (workdir / CHECKPOINTS, fast_tier(fast_dir, workdir)):
        if tier is not None:
            set_aside(tier, skip.after)
    record_skip(workdir, skip)


def place_after(skips: Iterable[Skip], start: int) -> int:
    """The step after whose batch a run goes on that has restored the checkpoint of `start`."""
    return max((skip.to for skip in skips if skip.after == start), default=start)


def describe(judged: Judged) -> tuple[str, dict[str, float]]:
    """Why a step was not applied: `loss 9.1 over 2.3`, and the numbers as a row of the metrics."""
    why, row = [], {}
    for group, pair in enumerate(judged.values):
        suffix = f"_{group}" if group else ""
        for column, name in enumerate(("loss", "grad_norm")):
            limit = math.inf if judged.limits is None else float(judged.limits[group, column])
            row |= {f"{name}{suffix}": pair[column]}
            row |= {f"{name}{suffix}_limit": limit} if math.isfinite(limit) else {}
            if not pair[column] <= limit or not math.isfinite(pair[column]):
                over = f" over {limit:.4g}" if math.isfinite(limit) else ""
                why.append(f"{name.replace('_', ' ')} {pair[column]:.4g}{over}")
    return ", ".join(why), row


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
