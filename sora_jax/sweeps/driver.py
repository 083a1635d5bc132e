"""Trains a sweep's members on this machine, each in a `sora-jax train` process of its own.

What a member comes to is in its exit code: 0 finished; 2 a user's error, recorded, and the others go on; 75 stopped
after saving, which stops the whole sweep (this machine is being taken away); anything else a crash, which is tried
again. SIGTERM and Ctrl-C reach every process under way, and the same command run later goes on.
"""

import collections
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import EXIT_USER_ERROR
from sora_jax.sweeps.directory import (
    LOG,
    Attempt,
    Record,
    Taken,
    close_open_attempt,
    reached_step,
    read_record,
    sign,
    take,
    write_record,
)
from sora_jax.sweeps.plan import Member
from sora_jax.sweeps.status import FAILED, FINISHED, read_standing, wall_seconds
from sora_jax.training.progress import duration
from sora_jax.training.stop import EXIT_PREEMPTED, StopSignal

POLL_S = 0.1

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """`base` is the config file of all members. `retries` bounds the crashes in a row without a newer checkpoint."""

    base: str
    workers: int = 1
    retries: int = 2
    retry_failed: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """One process under way, with its member's lock, the step that it started from, and where its log begins."""

    member: Member
    folder: Path
    process: subprocess.Popen
    lock: int
    from_step: int
    log_start: int


def train_command(member: Member, base: str, out: Path) -> list[str]:
    """The command that trains one member."""
    program = [sys.executable, "-m", "sora_jax.commands.main"]
    return [*program, "train", "--config", base, "--workdir", str(out / member.name), *member.overrides]


def run_members(members: Sequence[Member], out: Path, settings: Settings) -> None:
    """Trains what is not finished, `settings.workers` at a time, until all is done or a signal comes.

    Every outcome is in the members' records. Members that another process trains are left to it.
    """
    waiting, jobs = collections.deque(members), list[Job]()
    crashes: collections.Counter[str] = collections.Counter()
    with StopSignal() as stop:
        stopping = False
        try:
            while jobs or (waiting and not stopping):
                if stop.requested and not stopping:
                    stopping = True
                    _ask_to_stop(jobs)
                while waiting and len(jobs) < settings.workers and not stopping and not stop.requested:
                    job = _start(waiting.popleft(), out, settings)
                    jobs += [job] if job else []
                time.sleep(POLL_S)
                for job in [job for job in jobs if job.process.poll() is not None]:
                    jobs.remove(job)
                    code = _finish(job, stopping, crashes, settings.retries)
                    if code == EXIT_PREEMPTED and not stopping:
                        stopping = True
                        _ask_to_stop(jobs)
                    elif code not in (0, EXIT_USER_ERROR, EXIT_PREEMPTED):
                        waiting.appendleft(job.member)
        finally:  # empty, unless something unforeseen ended the loop
            _ask_to_stop(jobs)


def _start(member: Member, out: Path, settings: Settings) -> Job | None:
    """Starts a member's process, unless it is finished, was given up, or is another's."""
    folder = out / member.name
    try:
        lock = take(folder)
    except Taken as holder:
        logger.warning("%s is being trained by %s: left to it", _named(member), holder)
        return None
    standing = read_standing(member, out, taken=True)
    if standing.state == FINISHED or (standing.state == FAILED and not settings.retry_failed):
        if standing.state == FAILED:
            logger.warning("%s was given up: %s; --retry_failed tries it again", _named(member), standing.error)
        os.close(lock)
        return None
    record = close_open_attempt(read_record(folder), folder)
    write_record(folder, Record((*record.attempts, Attempt(time.time())), "", member.overrides))
    log_start = (folder / LOG).stat().st_size if (folder / LOG).exists() else 0
    with (folder / LOG).open("ab") as log:
        command = train_command(member, settings.base, out)
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, pass_fds=[lock])
    sign(lock, process.pid)
    logger.info("%s from step %d; its log is %s", _named(member), standing.step, folder / LOG)
    return Job(member, folder, process, lock, standing.step, log_start)


def _finish(job: Job, stopping: bool, crashes: collections.Counter[str], retries: int) -> int:
    """Records how a process ended and gives the member back.

    Returns 0 (finished), 2 (given up), 75 (preempted), or the exit code of a crash that is worth another try.
    """
    code, error = job.process.returncode, ""
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM) and stopping:  # before it could catch the signal
        code = EXIT_PREEMPTED
    if code == EXIT_USER_ERROR:
        error = _last_words(job)
    elif code not in (0, EXIT_PREEMPTED):
        progressed = reached_step(job.folder) > job.from_step
        crashes[job.member.name] = 1 if progressed else crashes[job.member.name] + 1
        if stopping:
            code = EXIT_PREEMPTED
        elif crashes[job.member.name] > retries:
            error = f"{crashes[job.member.name]} crashes in a row, the last with {_cause(code)}: {_last_words(job)}"
            code = EXIT_USER_ERROR
    record = read_record(job.folder)
    attempt = dataclasses.replace(record.attempts[-1], ended=time.time(), exit_code=job.process.returncode)
    record = Record((*record.attempts[:-1], attempt), error, job.member.overrides)
    write_record(job.folder, record)
    os.close(job.lock)
    _tell(job, code, error, wall_seconds(record, job.folder))
    return code


def _tell(job: Job, code: int, error: str, seconds: float) -> None:
    if code == 0:
        logger.info("%s finished after %s", _named(job.member), duration(seconds))
    elif code == EXIT_USER_ERROR:
        logger.error("%s is given up: %s", _named(job.member), error)
    elif code == EXIT_PREEMPTED:
        logger.info("%s stopped at step %d", _named(job.member), reached_step(job.folder))
    else:
        logger.warning("%s crashed with %s: %s; trying again", _named(job.member), _cause(code), _last_words(job))


def _ask_to_stop(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.process.poll() is None:
            job.process.terminate()


def _last_words(job: Job) -> str:
    """What the process said last: its one-line error if it made one."""
    with (job.folder / LOG).open("rb") as log:
        log.seek(job.log_start)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("sora-jax: error: ") for line in lines if line.startswith("sora-jax: error: ")]
    return (said or lines or ["it said nothing"])[-1]


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _named(member: Member) -> str:
    return f"member {member.index} ({member.name})"
