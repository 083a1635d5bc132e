"""Where each member of a sweep stands, read from its run directory: nothing has to be running for that."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from sora_jax.sweeps.directory import Record, close_open_attempt, is_taken, newest_step, reached_step, read_record
from sora_jax.sweeps.plan import Member
from sora_jax.training.metrics import read_metrics

PENDING, RUNNING, PREEMPTED, FINISHED, FAILED = "pending", "running", "preempted", "finished", "failed"
STATES = (PENDING, RUNNING, PREEMPTED, FINISHED, FAILED)


@dataclasses.dataclass(frozen=True)
class Standing:
    """One member: its state, the step that it would go on from (running: the last one logged), and what it measured.

    `preempted` is what began and stopped before its end, for whatever reason: it goes on when the sweep is run again.
    `seconds` is the wall time of all attempts, `left_s` what the current one still needs; None where it is not known.
    """

    member: Member
    state: str
    step: int
    loss: float | None = None
    held_out_loss: float | None = None
    units_per_second: float | None = None
    unit: str = "units"
    seconds: float | None = None
    left_s: float | None = None
    attempts: int = 0
    error: str = ""


def read_standing(member: Member, out: Path, *, taken: bool = False) -> Standing:
    """Where `member` stands in the sweep's folder `out`; with `taken` as seen by the one who holds it."""
    folder = out / member.name
    record, committed = read_record(folder), newest_step(folder)
    state = _state(member, record, committed, not taken and is_taken(folder))
    rows = read_metrics(folder)
    train = [row for row in rows if row["kind"] == "train"]
    held_out = [row for row in rows if row["kind"] == "eval"]
    reached = reached_step(folder)
    step = max([reached, *(row["step"] for row in train)]) if state == RUNNING else reached
    rates = [(n, v) for row in train for n, v in row.items() if n.endswith("_per_second") and v is not None]
    return Standing(
        member=member,
        state=state,
        step=step,
        loss=train[-1].get("loss") if train else None,
        held_out_loss=_first_metric(held_out[-1]) if held_out else None,
        units_per_second=statistics.median(v for _, v in rates) if rates else None,
        unit=rates[-1][0].removesuffix("_per_second") if rates else "units",
        seconds=wall_seconds(record, folder) if record.attempts else None,
        left_s=_left_s(member, step, train) if state == RUNNING else None,
        attempts=len(record.attempts),
        error=record.error if state == FAILED else "",
    )


def wall_seconds(record: Record, folder: Path) -> float:
    """The wall time of all attempts, one that is under way up to its last row of metrics."""
    attempts = close_open_attempt(record, folder).attempts
    return sum((a.ended or a.started) - a.started for a in attempts)


def _state(member: Member, record: Record, committed: int, taken: bool) -> str:
    if taken:
        return RUNNING
    if committed >= member.num_steps:
        return FINISHED
    if record.error and record.overrides == member.overrides:
        return FAILED
    return PREEMPTED if record.attempts else PENDING


def _first_metric(row: dict[str, Any]) -> float | None:
    """A task's evaluation names first what is to become small: the diffusion's loss, the autoencoder's L1."""
    return next((value for name, value in row.items() if name not in ("kind", "step")), None)


def _left_s(member: Member, step: int, train: list[dict[str, Any]]) -> float | None:
    """At the pace of the last row; evaluations and previews come on top."""
    pace = next((row["step_seconds"] for row in reversed(train) if row.get("step_seconds")), None)
    return None if pace is None else (member.num_steps - step) * pace


def count_states(standings: list[Standing]) -> dict[str, int]:
    """How many members are in each state."""
    return {state: sum(s.state == state for s in standings) for state in STATES}
