"""A kill storm: one short run, killed at drawn moments and started again until it is finished, then held to account.

The run must end with the state, bit for bit, of a run on the same devices that nobody disturbed, and no committed step
may ever be lost: every start goes on from the newest. A start follows the launchers' rule: any exit code but 0 and 2 is
worth another one. What is drawn depends on the seed and the kill's number alone.
"""

import contextlib
import dataclasses
import json
import logging
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import EXIT_USER_ERROR, UserError
from sora_jax.evaluation.storm_attempt import Attempt, newest_step
from sora_jax.evaluation.storm_link import Link, check_link
from sora_jax.training.metrics import read_metrics

KINDS = {
    "sigkill": "SIGKILL between two drawn steps, or (one in EARLY) while the process starts",
    "sigterm": "SIGTERM, likewise",
    "mid_save": "SIGKILL while a checkpoint is being written",
    "sigterm_in_save": "SIGTERM while a checkpoint is being written",
    "one_of_two": "two processes, and SIGKILL for one of them, drawn",
    "link": "two processes as two hosts, and the cable between them is pulled",
}
IN_PAIRS = ("one_of_two", "link")
EARLY = 8
EXIT_FINISHED = 0
STEP_LIMIT_S, EXIT_LIMIT_S, SAVE_S = 300.0, 120.0, 0.1
MAX_FRUITLESS = 5
ROWS, REFERENCE, STORM, UNDISTURBED = "storm.jsonl", "reference.json", "storm", "undisturbed"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Storm:
    """What a storm is: `train` is the verb with its config and overrides, which gets a `--workdir` below `folder`."""

    train: tuple[str, ...]
    folder: Path
    num_steps: int
    num_kills: int
    kinds: tuple[str, ...]
    seed: int = 0
    limit_s: float = float("inf")
    """After so long there are no more kills, and the run may finish"""

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise UserError(f"--kinds has '{unknown[0]}', but knows only {', '.join(KINDS)}")
        if not self.kinds or self.num_kills < 1:
            raise UserError(f"a storm needs kinds and at least 1 kill, not {len(self.kinds)} and {self.num_kills}")

    @property
    def num_devices(self) -> int:
        """The same for every start, whether one process holds them all or two share them."""
        return 2 if any(kind in IN_PAIRS for kind in self.kinds) else 1

    def words(self, run: str) -> list[str]:
        return [*self.train, "--workdir", str(self.folder / run)]

    def kind(self, number: int) -> str:
        """The kind of kill `number`: each round of kinds comes in an order of its own."""
        rounds, place = divmod(number, len(self.kinds))
        return self.kinds[np.random.default_rng([self.seed, rounds, 1]).permutation(len(self.kinds))[place]]


def run_undisturbed(storm: Storm) -> dict[str, float]:
    """Trains the run that nobody disturbs, unless it is there already. Returns how long its start and a step take.

    Raises UserError if it does not finish.
    """
    path = storm.folder / REFERENCE
    if path.exists():
        return json.loads(path.read_text())
    storm.folder.mkdir(parents=True, exist_ok=True)
    run = storm.folder / UNDISTURBED
    with Attempt(storm.words(UNDISTURBED), run, storm.folder / UNDISTURBED, storm.num_devices) as attempt:
        attempt.wait_until(lambda: attempt.look() > 0, float("inf"))
        attempt.wait(float("inf"))
        if attempt.codes() != [EXIT_FINISHED] or newest_step(run) != storm.num_steps:
            raise UserError(f"the undisturbed run ended with {attempt.codes()}: {attempt.last_words()}")
    seconds = [row["step_seconds"] for row in read_metrics(run) if "step_seconds" in row]
    measured = {"start_s": attempt.first_step_s or 0.0, "step_s": statistics.median(seconds)}
    path.write_text(json.dumps(measured) + "\n")
    return measured


def run_storm(storm: Storm) -> list[dict[str, Any]]:
    """Kills the run `num_kills` times and lets it finish. Returns a row for each start, which `storm.jsonl` has too.

    A storm that was itself interrupted goes on after its last row. Raises UserError when the run ends with a user's
    error, or ends by itself MAX_FRUITLESS times in a row.
    """
    if "link" in storm.kinds:
        check_link()
    measured, path = run_undisturbed(storm), storm.folder / ROWS
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    deadline = time.monotonic() + storm.limit_s
    with path.open("a") as file:
        while not rows or rows[-1]["kind"] != "none" or rows[-1]["codes"] != [EXIT_FINISHED]:
            kill = sum(r["struck"] for r in rows) if time.monotonic() < deadline else storm.num_kills
            row = one_start(storm, len(rows), kill, measured)
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            logger.info("%s", describe(row, storm.num_kills))
            _check_sane(rows, storm)
    return rows


def _check_sane(rows: list[dict[str, Any]], storm: Storm) -> None:
    last = rows[-1]
    if EXIT_USER_ERROR in last["codes"]:
        raise UserError(f"start {len(rows)} ended with a user's error: {last['last_words']}")
    if len(rows) >= MAX_FRUITLESS and not any(r["struck"] for r in rows[-MAX_FRUITLESS:]):
        raise UserError(f"the run ended by itself {MAX_FRUITLESS} times in a row, in the end: {last['last_words']}")


def one_start(storm: Storm, number: int, kill: int, measured: dict[str, float]) -> dict[str, Any]:
    """Starts the run, strikes it (unless all kills are done), waits for its end. Returns what happened."""
    kind = storm.kind(kill) if kill < storm.num_kills else "none"
    draw = np.random.default_rng([storm.seed, kill, 2])
    run, log = storm.folder / STORM, storm.folder / "logs" / f"{number:04d}_{kind}"
    log.parent.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(Link()) if kind == "link" else None
        count = 2 if kind in IN_PAIRS else 1
        attempt = stack.enter_context(Attempt(storm.words(STORM), run, log, storm.num_devices, count, link))
        begun = time.time()
        if kind == "none":
            attempt.wait_until(lambda: attempt.look() > 0, float("inf"))
            struck, in_save, exit_s = False, False, attempt.wait(float("inf"))
        else:
            struck = _wait_for_moment(storm, kind, kill, attempt, draw, measured)
            in_save = attempt.is_saving()
            if struck:
                _strike(kind, attempt, link, draw)
            exit_s = attempt.wait(EXIT_LIMIT_S)
    reached, newest, resumed = attempt.look(), newest_step(run), attempt.resumed_from()
    return {
        "number": number,
        "kind": kind,
        "struck": struck,
        "began": begun,
        "ended": time.time(),
        "newest_before": attempt.newest_before,
        "resumed_from": resumed,
        "reached": reached,
        "in_save": in_save,
        "newest_after": newest,
        "lost": count_lost(attempt.newest_before, resumed, attempt.newest_seen, newest),
        "repeated": max(0, reached - newest),
        "codes": attempt.codes(),
        "first_step_s": attempt.first_step_s,
        "exit_s": exit_s,
        "last_words": attempt.last_words(),
    }


def _wait_for_moment(
    storm: Storm, kind: str, kill: int, attempt: Attempt, draw: np.random.Generator, measured: dict[str, float]
) -> bool:
    """Waits for the drawn moment of a kill. Returns whether the run was still there.

    Steps are drawn so that the kills still to come just fit into the steps still to come.
    """
    if kind in ("sigkill", "sigterm") and draw.integers(EARLY) == 0:
        attempt.wait_until(lambda: False, draw.uniform(0.0, measured["start_s"]))
        return attempt.is_running
    share = (storm.num_steps - attempt.newest_before) / (storm.num_kills - kill + 1)
    target = attempt.newest_before + int(draw.integers(1, max(2, round(2 * share))))
    target = min(target, storm.num_steps - 1)
    attempt.wait_until(lambda: attempt.look() >= target, STEP_LIMIT_S)
    if "save" in kind:
        attempt.wait_until(attempt.is_saving, STEP_LIMIT_S)
        time.sleep(draw.uniform(0.0, SAVE_S))
    else:
        time.sleep(draw.uniform(0.0, 2 * measured["step_s"]))
    return attempt.is_running


def _strike(kind: str, attempt: Attempt, link: Link | None, draw: np.random.Generator) -> None:
    if link is not None:
        link.cut()
        return
    victim = attempt.processes[draw.integers(len(attempt.processes))]
    victim.send_signal(signal.SIGTERM if kind.startswith("sigterm") else signal.SIGKILL)


def count_lost(newest_before: int, resumed_from: int | None, newest_seen: int, newest_after: int) -> int:
    """How often a start lost committed steps: by going on from an older one than it found, by leaving an older one."""
    went_back = resumed_from is not None and resumed_from < newest_before
    return int(went_back) + int(newest_after < newest_seen)


def describe(row: dict[str, Any], num_kills: int) -> str:
    """One start on one line."""
    return (
        f"start {row['number']} ({num_kills} kills): {row['kind']} from {row['resumed_from']} at {row['reached']}, "
        f"codes {row['codes']} after {row['exit_s']:.1f} s, newest {row['newest_before']} -> {row['newest_after']}"
    )
