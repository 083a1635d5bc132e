"""Workers that are killed are started again at the very step, and what they cannot get past is said."""

import logging
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_pipeline import prefetch
from data_pipeline.errors import UserError
from data_pipeline.prefetch import exit_code_of_worker, make_stream


class Numbers:
    """Step n is n; at `deadly` the process that computes it is killed, until the file `mercy` is there."""

    def __init__(self, deadly: int = -1, mercy: Path | None = None):
        self.deadly, self.mercy = deadly, mercy

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        if step == self.deadly and not (self.mercy and self.mercy.exists()):
            if self.mercy:
                self.mercy.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"step": np.full(1_000, step)}


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]


def test_a_killed_worker_is_started_again_and_no_step_is_lost_or_comes_twice(caplog) -> None:
    steps = []
    with caplog.at_level(logging.WARNING), make_stream(Numbers(), 5, 40, num_workers=2) as stream:
        for batch in stream:
            steps.append(int(batch["step"][0]))
            if steps[-1] == 9:
                workers()[-1].kill()
    assert steps == list(range(5, 45))
    told = [record.getMessage() for record in caplog.records if "died" in record.message]
    assert len(told) == 1 and "exit code -9" in told[0]
    assert not workers()


def test_a_worker_that_is_killed_while_it_computes_a_step_computes_it_again(tmp_path: Path) -> None:
    with make_stream(Numbers(3, tmp_path / "mercy"), 0, 6, num_workers=1) as stream:
        assert [int(batch["step"][0]) for batch in stream] == [0, 1, 2, 3, 4, 5]


def test_a_step_that_kills_every_worker_is_a_user_error(monkeypatch) -> None:
    monkeypatch.setattr(prefetch, "MAX_RESTARTS", 1)
    match = r"died 2 times at step [01] \(exit code -9"  # it reads ahead
    with make_stream(Numbers(1), 0, 6, num_workers=1) as stream, pytest.raises(UserError, match=match):
        list(stream)


def test_only_words_of_a_dead_worker_are_taken_for_its_death() -> None:
    assert exit_code_of_worker(RuntimeError("Worker process was terminated unexpectedly with exit code -9. Se")) == -9
    assert exit_code_of_worker(RuntimeError("the disk is gone")) is None
