"""Everybody present? A short meeting of all processes before JAX's own start-up, whose failures end the program in C++.

Process 0 listens at the coordinator's address; the others connect and say who they are; when all have come, or the
time is up, or two of them disagree, process 0 tells everyone the outcome and hangs up. JAX's coordination service then
takes over the port.
"""

import contextlib
import json
import socket
import time
from typing import Any, NamedTuple

from data_pipeline.errors import UserError
from sora_jax.training.peers import EXIT_HOST_LOST

RETRY_S = 0.5
GREETING_S = 5.0
"""A connection that says nothing for so long is not one of ours."""


class AbsentError(UserError):
    """Others did not come in time: their machines may be slow to start, and the next start may find them."""

    exit_code = EXIT_HOST_LOST


class Place(NamedTuple):
    """One process's place among all."""

    coordinator: str
    """`host:port` of process 0"""
    num_processes: int
    process_id: int


def meet(place: Place, timeout_s: float) -> None:
    """Returns when all processes have come and agree on their number.

    Raises UserError, in every process that can be reached, when two have the same id or they were told different
    numbers of processes; AbsentError when one is missing after `timeout_s`, or nothing answers at the address.
    """
    host, port = split_address(place.coordinator)
    if place.process_id == 0:
        _gather(place, port, timeout_s)
    else:
        _report(place, host, port, timeout_s)


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[IPv6]:port` in its two parts. Raises UserError for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"the coordinator's address is '{address}', but must be host:port, such as node1:8476")
    return host.strip("[]"), int(port)


def _gather(place: Place, port: int, timeout_s: float) -> None:
    """Process 0's part: hears all others, and tells them the outcome."""
    deadline = time.monotonic() + timeout_s
    came: dict[int, tuple[str, socket.socket]] = {}
    with contextlib.ExitStack() as connections, connections.enter_context(_listen(port)) as server:
        trouble, is_absent = None, False
        while trouble is None and len(came) < place.num_processes - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = connections.enter_context(server.accept()[0])
            except TimeoutError:
                trouble, is_absent = _missing(place, came, timeout_s), True
                break
            greeting = _read_line(connection, GREETING_S)
            if greeting is not None and {"process_id", "num_processes", "host"} <= greeting.keys():
                trouble = _admit(place, greeting, connection, came)
        for _, connection in came.values():
            _send(connection, {"trouble": trouble, "is_absent": is_absent})
    if trouble is not None:
        raise (AbsentError if is_absent else UserError)(trouble)


def _admit(place: Place, greeting: dict[str, Any], connection: socket.socket, came: dict[int, Any]) -> str | None:
    """Adds a process to those that came, or says why the run cannot start."""
    number, told, host = greeting["process_id"], greeting["num_processes"], greeting["host"]
    earlier = came.get(number)
    is_double = number == 0 or (earlier is not None and not _has_hung_up(earlier[1]))
    came[len(came) + place.num_processes if is_double else number] = (host, connection)  # it hears the outcome too
    if told != place.num_processes:
        return (
            f"process 0 was told of {place.num_processes} processes, process {number} on {host} of {told}; "
            "give all of them the same SORA_NUM_PROCESSES"
        )
    if is_double:
        first = socket.gethostname() if earlier is None else earlier[0]
        return (
            f"two processes say that they are process {number}: one on {first}, one on {host}; "
            f"give each its own SORA_PROCESS_ID from 0 to {place.num_processes - 1}"
        )
    if not 0 < number < place.num_processes:
        return f"process {number} on {host} is none of the {place.num_processes}, 0 to {place.num_processes - 1}"
    return None


def _missing(place: Place, came: dict[int, Any], timeout_s: float) -> str:
    absent = ", ".join(str(i) for i in range(1, place.num_processes) if i not in came)
    return (
        f"process(es) {absent} of {place.num_processes} did not come to {place.coordinator} within {timeout_s:g} s; "
        "see their logs, and that they can reach this address (SORA_START_TIMEOUT_S sets how long to wait)"
    )


def _report(place: Place, host: str, port: int, timeout_s: float) -> None:
    """The others' part: greets process 0, retrying until it listens, and hears the outcome."""
    begun, last = time.monotonic(), "nothing was tried"
    left = timeout_s
    while left > 0:
        try:
            with socket.create_connection((host, port), timeout=max(1.0, min(left, 10.0))) as connection:
                me = {"process_id": place.process_id, "num_processes": place.num_processes}
                _send(connection, {**me, "host": socket.gethostname()})
                outcome = _read_line(connection, left + GREETING_S)  # process 0 is the one to say that time is up
            if outcome is not None and "trouble" in outcome:
                if outcome["trouble"] is not None:
                    raise (AbsentError if outcome.get("is_absent") else UserError)(outcome["trouble"])
                return
            last = "what answers there is not process 0 of this run"
        except OSError as error:
            last = str(error)
        time.sleep(RETRY_S)
        left = timeout_s - (time.monotonic() - begun)
    raise AbsentError(
        f"process {place.process_id} could not reach process 0 at {place.coordinator} within {timeout_s:g} s ({last}); "
        "check the coordinator's address, and that process 0 runs (SORA_START_TIMEOUT_S sets how long to wait)"
    )


def _listen(port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}); choose a free port for the coordinator"
        ) from error


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who is gone will be missed
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection: socket.socket, timeout_s: float) -> dict[str, Any] | None:
    """The next line as JSON, or None if the other side is not one of ours."""
    connection.settimeout(timeout_s)
    try:
        with connection.makefile("rb") as stream:
            message = json.loads(stream.readline(65536))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _has_hung_up(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
