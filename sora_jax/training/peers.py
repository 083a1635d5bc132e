"""What the processes of a run know of each other: who is alive, at which step, and why one of them ended.

A thread of each process writes a sign of life into the coordination service every second and reads those of all
others; a second thread, which waits for nothing, judges what the first one has heard. A process that was not heard for
`silence_s`, by the clock of the one who listens, is lost: everyone says so and exits with code 76.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed as jax_distributed  # the one way to the coordination service's keys and barriers

EXIT_HOST_LOST = 76
"""EX_PROTOCOL of sysexits.h: another process was lost or hung; run the same command again to go on."""
PERIOD_S = 1.0
SILENCE_S = 30.0
CLIENT_HEARTBEAT_S = 100
LINGER_S = 4.0
ALIVE, FAILURE = "sora_alive", "sora_failure"


def client_limit_s(silence_s: float) -> int:
    """JAX's own limit, should Python itself hang.

    It ends the process by SIGABRT, without our words, so it comes late: no sooner than four times our own, since JAX
    sends its signs of life only every half of it.
    """
    return max(CLIENT_HEARTBEAT_S, round(4 * silence_s))


def client() -> Any:
    """The coordination service, as this process reaches it."""
    return jax_distributed.global_state.client


class Peers:
    """The other processes, watched while it is entered. It never touches a device."""

    def __init__(self, silence_s: float = SILENCE_S) -> None:
        self._me, self._count = jax.process_index(), jax.process_count()
        self._state: dict[str, Any] = {"host": socket.gethostname(), "step": 0, "phase": "start"}
        self._signs: dict[int, dict[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._answered = time.monotonic()
        self._silence_s = silence_s
        self._closed = threading.Event()
        self._failed, self._lock = threading.Event(), threading.Lock()
        self.dump: Callable[[], None] | None = None
        """Writes this process's stacks before it ends because of another"""
        self._threads = [threading.Thread(target=t, daemon=True, name=t.__name__) for t in (self._listen, self._judge)]

    def __enter__(self) -> "Peers":
        global _watched
        _watched = self
        self._heard = dict.fromkeys(range(self._count), time.monotonic())
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        global _watched
        if kind is None:
            self._closed.set()
            for thread in self._threads:
                thread.join()
            _watched = None

    def tell(self, step: int, phase: str) -> None:
        """What this process does now, for the others to see; costs nothing."""
        self._state = {**self._state, "step": step, "phase": phase}

    def note(self, **facts: Any) -> None:
        """Facts of this process that its signs of life carry from now on."""
        self._state = {**self._state, **facts}

    @property
    def signs(self) -> dict[int, dict[str, Any]]:
        """The last sign of life of every process, this one included."""
        return dict(self._signs)

    def describe(self) -> str:
        """The last that was heard of every process: who is behind comes first."""
        now = time.monotonic()
        rows = [(sign["step"], i, sign, now - self._heard[i]) for i, sign in self._signs.items()]
        return "; ".join(
            f"process {i} on {sign['host']}: step {step}, {sign['phase']}, heard {age:.0f} s ago"
            for step, i, sign, age in sorted(rows, key=lambda row: (row[0], -row[3]))
        )

    def fail(self, code: int, reason: str, after_s: float = 0.0) -> None:
        """Says why this process ends, to the others too, and exits. Another's failure that is heard of within `after_s`
        is the cause of this one, and ends the process instead."""
        if not self._failed.wait(after_s) and self._is_first():
            _say(reason)
            self._publish_failure(code, reason)
            _exit(code)
        time.sleep(2 * LINGER_S)  # another thread is about to end the process, with the reason
        _exit(EXIT_HOST_LOST)

    def _is_first(self) -> bool:
        """Whether the calling thread is the one that ends this process."""
        with self._lock:
            is_first = not self._failed.is_set()
            self._failed.set()
            return is_first

    def _publish_failure(self, code: int, reason: str) -> None:
        failure = {"process": self._me, "host": self._state["host"], "code": code, "reason": " ".join(reason.split())}
        writer = threading.Thread(target=_set_once, args=(FAILURE, json.dumps(failure)), daemon=True)
        writer.start()  # the service may be what hangs
        writer.join(LINGER_S)
        if self._me == 0:  # the service ends with this process: the others hear the reason first
            time.sleep(LINGER_S)

    def _listen(self) -> None:
        number = 0
        while not self._closed.wait(PERIOD_S):
            number += 1
            try:
                sign = json.dumps({**self._state, "number": number})
                client().key_value_set(f"{ALIVE}/{self._me}", sign, allow_overwrite=True)
                heard = {int(k.rsplit("/", 1)[1]): json.loads(v) for k, v in client().key_value_dir_get(ALIVE)}
                failures = client().key_value_dir_get(FAILURE)
            except jax.errors.JaxRuntimeError:
                continue  # no answer is judged by how long it lasts
            now = time.monotonic()
            self._answered = now
            for process, sign in heard.items():
                if sign["number"] != self._signs.get(process, {}).get("number"):
                    self._heard[process] = now
            self._signs = heard
            if failures:
                self._follow(json.loads(failures[0][1]))

    def _follow(self, failure: dict[str, Any]) -> None:
        """Ends this process because another did."""
        if failure["process"] == self._me or not self._is_first():
            return
        _say(f"ended by process {failure['process']} on {failure['host']}: {failure['reason']}")
        if failure["code"] in (2, 3):
            _exit(failure["code"])
        if self.dump is not None:
            self.dump()
        _exit(EXIT_HOST_LOST)

    def _judge(self) -> None:
        while not self._closed.wait(PERIOD_S):
            now = time.monotonic()
            silent = [i for i, heard in sorted(self._heard.items()) if i != self._me and now - heard > self._silence_s]
            if now - self._answered > self._silence_s:
                lost = f"the coordination service of process 0 has not answered for {now - self._answered:.0f} s"
            elif silent:
                lost = f"process(es) {', '.join(map(str, silent))} have not been heard for {self._silence_s:.0f} s"
            else:
                continue
            if self._is_first():
                reason = f"{lost}: lost or hung; run the same command again. Last heard: {self.describe()}"
                if self.dump is not None:
                    self.dump()
                _say(reason)
                self._publish_failure(EXIT_HOST_LOST, reason)
                _exit(EXIT_HOST_LOST)


_watched: Peers | None = None


def watched() -> Peers | None:
    """The peers of this process while it is joined with others, else None."""
    return _watched


def _set_once(key: str, value: str) -> None:
    try:
        client().key_value_set(f"{key}/first", value)
    except jax.errors.JaxRuntimeError:
        return  # another one was first, or nobody is there to hear it


def _say(reason: str) -> None:
    print(f"sora-jax: {' '.join(reason.split())}", file=sys.stderr, flush=True)


def _exit(code: int) -> None:
    """Ends the process at once: a regular exit would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
