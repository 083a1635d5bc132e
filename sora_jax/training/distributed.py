"""Many processes as one run: how they find each other, agree, and end together. With one process, nothing happens.

Where a process finds its place (`find_place`): SORA_COORDINATOR, SORA_NUM_PROCESSES and SORA_PROCESS_ID, or Slurm's
variables for what these leave open; on TPU VMs and GKE, where the platform knows, JAX's own detection.
docs/many_hosts.md says what each host does when another is lost.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from data_pipeline.errors import EXIT_SYSTEM_ERROR, UserError
from sora_jax.training.peers import EXIT_HOST_LOST, LINGER_S, SILENCE_S, Peers, client, client_limit_s
from sora_jax.training.rendezvous import Place, meet

START_TIMEOUT_S = 120.0
CLOCK_WARNING_S, CLOCK_ERROR_S = 1.0, 60.0
CONTACT = ("gloo", "nccl", "barrier", "connection", "coordination", "unavailable", "deadline_exceeded")
"""Words of JAX's errors, in small letters, that say that the link to another process broke."""
STATUS = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")
"""How the text of a runtime's error begins: reading a value that was never made raises it as a plain ValueError."""
AGREEMENT_TIMEOUT_S = 1800
"""How long one process may be ahead of another at a point where all agree: the watchdog ends a hung one long before."""

logger = logging.getLogger(__name__)
_numbers = itertools.count()


def find_place(environment: Mapping[str, str]) -> Place | None:
    """This process's place by SORA_… and Slurm's variables; None if they describe a single process.

    Raises UserError for variables that contradict each other or name only a part.
    """
    num_processes = _number(environment, "SORA_NUM_PROCESSES", "SLURM_NTASKS")
    process_id = _number(environment, "SORA_PROCESS_ID", "SLURM_PROCID")
    coordinator = environment.get("SORA_COORDINATOR")
    in_slurm_step = {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_JOB_ID"} <= environment.keys()
    if coordinator is None and not in_slurm_step:
        if "SORA_PROCESS_ID" in environment or ("SORA_NUM_PROCESSES" in environment and num_processes != 1):
            raise UserError("SORA_COORDINATOR is not set; give host:port of process 0 to every process")
        return None
    if num_processes == 1:
        return None
    if num_processes == 0:
        raise UserError("SORA_NUM_PROCESSES is 0, but must be at least 1")
    if num_processes is None or process_id is None:
        raise UserError("SORA_COORDINATOR is set; set SORA_NUM_PROCESSES and SORA_PROCESS_ID too, in every process")
    if process_id >= num_processes:
        raise UserError(
            f"SORA_PROCESS_ID is {process_id}, but must be from 0 to {num_processes - 1}: SORA_NUM_PROCESSES is "
            f"{num_processes}"
        )
    return Place(coordinator or _slurm_coordinator(environment), num_processes, process_id)


def _number(environment: Mapping[str, str], *names: str) -> int | None:
    """The first of these variables that is set, as a number. Raises UserError if it is none."""
    name = next((n for n in names if environment.get(n)), None)
    if name is None:
        return None
    if not environment[name].isdigit():
        raise UserError(f"{name} is '{environment[name]}', but must be a whole number")
    return int(environment[name])


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    """What this variable says, or the default. Raises UserError if it is no time."""
    text = environment.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UserError(f"{name} is '{text}', but must be a number of seconds above 0")
    return seconds


def _slurm_coordinator(environment: Mapping[str, str]) -> str:
    """The step's first node, and a port that follows from the job's id."""
    first = environment["SLURM_STEP_NODELIST"].split(",")[0]
    prefix, bracket, numbers = first.partition("[")
    host = prefix + numbers.rstrip("]").split("-")[0] if bracket else prefix
    return f"{host}:{20000 + int(environment['SLURM_JOB_ID']) % 12000}"


def local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """The accelerators of this process where Slurm starts several on a node, one for each; None means all."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    if "SORA_PROCESS_ID" in environment or "SLURM_LOCALID" not in environment or tasks.split("(")[0] == "1":
        return None
    if environment.get("CUDA_VISIBLE_DEVICES", "").count(",") == 0:  # Slurm has bound one to each task already
        return None
    return [int(environment["SLURM_LOCALID"])]


def is_platform_known(environment: Mapping[str, str]) -> bool:
    """Whether JAX can find several hosts by itself: a GKE or multislice TPU's variables say so."""
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    on_tpu = "tpu" in environment.get("JAX_PLATFORMS", "tpu")
    return on_tpu and ("," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1)


@contextlib.contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Joins the other processes of the run, if there are any, before the first use of a device.

    While it is entered a lost process ends all of them with exit code 76, and one that fails ends all of them with its
    reason. Raises UserError when they do not all come together, or their clocks are apart.
    """
    place = find_place(environment)
    if place is None and not is_platform_known(environment):
        yield
        return
    silence_s = _seconds(environment, "SORA_SILENCE_S", SILENCE_S)
    _start(place, environment, _seconds(environment, "SORA_START_TIMEOUT_S", START_TIMEOUT_S), silence_s)
    _quieten()
    peers = Peers(silence_s)
    try:
        with peers:
            _compare_clocks()
            yield
            barrier("end")
    except BaseException as error:
        peers.fail(*_verdict(error))


def _start(place: Place | None, environment: Mapping[str, str], timeout_s: float, silence_s: float) -> None:
    # Its handler of SIGTERM would take the place of ours; the loop agrees on the step at which to stop by itself.
    jax.config.update("jax_enable_preemption_service", False)
    limits: dict[str, int] = {
        "initialization_timeout": max(1, round(timeout_s)),
        "heartbeat_timeout_seconds": client_limit_s(silence_s),
    }
    if place is None:
        jax.distributed.initialize(**limits)
        return
    meet(place, timeout_s)
    jax.distributed.initialize(
        *place, local_device_ids=local_devices(environment), cluster_detection_method="deactivate", **limits
    )


def _quieten() -> None:
    """Process 0 speaks for all: the others say warnings and errors only, with their host's name in front."""
    if jax.process_index() == 0:
        return
    for package in ("sora_jax", "data_pipeline"):
        logging.getLogger(package).setLevel(logging.WARNING)
    prefix = f"[{jax.process_index()} {socket.gethostname()}] "
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"{prefix}%(levelname).1s %(name)s: %(message)s"))


def is_leader() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str, timeout_s: float = AGREEMENT_TIMEOUT_S) -> None:
    """Waits until every process is here; each must call it equally often. Touches no device."""
    if jax.process_count() > 1:
        client().wait_at_barrier(f"sora/{next(_numbers)}/{name}", round(timeout_s * 1000))


def compile_together(program: Any, *args: Any) -> None:
    """Compiles a jitted function for these arguments in every process before any of them runs it.

    Each compiles (or finds its program in the cache) in its own time, and gloo waits 30 s for the last one at a group's
    first exchange. The call that follows finds what was compiled here.
    """
    if jax.process_count() > 1:
        program.lower(*args).compile()
        barrier("compiled")


def agreed(name: str, value: Any) -> Any:
    """Process 0's `value` (anything that JSON can hold), in every process; each must call it equally often."""
    if jax.process_count() == 1:
        return value
    key = f"sora/{next(_numbers)}/{name}"
    if is_leader():
        client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(client().blocking_key_value_get(key, AGREEMENT_TIMEOUT_S * 1000))


def gathered(name: str, value: Any) -> list[Any]:
    """Every process's `value` (anything that JSON can hold), in their order; each must call it equally often."""
    if jax.process_count() == 1:
        return [value]
    key = f"sora/{next(_numbers)}/{name}"
    client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [
        json.loads(client().blocking_key_value_get(f"{key}/{i}", AGREEMENT_TIMEOUT_S * 1000))
        for i in range(jax.process_count())
    ]


def _compare_clocks() -> None:
    """Warns of clocks more than a second apart. Raises UserError beyond a minute: the logs and ledgers would lie."""
    barrier("clocks")  # all leave it at the same moment, but for a message's way
    key = f"sora/{next(_numbers)}/clock"
    client().key_value_set(f"{key}/{jax.process_index()}", json.dumps([socket.gethostname(), time.time()]))
    barrier("clocks_are_known")
    told = {int(name.rsplit("/", 1)[1]): json.loads(value) for name, value in client().key_value_dir_get(key)}
    first, last = (pick(told, key=lambda i: told[i][1]) for pick in (min, max))
    apart = told[last][1] - told[first][1]
    text = (
        f"the clocks of process {first} on {told[first][0]} and process {last} on {told[last][0]} are {apart:.1f} s "
        "apart; set them by NTP"
    )
    if apart > CLOCK_ERROR_S:
        raise UserError(text)
    if apart > CLOCK_WARNING_S and is_leader():
        logger.warning("%s", text)


def _verdict(error: BaseException) -> tuple[int, str, float]:
    """(exit code, the reason on one line, seconds to wait for another's failure, which may be the cause)."""
    if lost := _lost_contact(error):
        return EXIT_HOST_LOST, f"lost contact with another process: {lost}; run the same command again", LINGER_S
    if isinstance(error, UserError):
        return error.exit_code, f"error: {error}", 0.0
    if isinstance(error, OSError):
        return EXIT_SYSTEM_ERROR, f"error: {error}", 0.0
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted", 0.0
    traceback.print_exception(error, file=sys.stderr)
    return 1, f"{type(error).__name__}: {error}", LINGER_S


def _lost_contact(error: BaseException) -> str | None:
    """What JAX says of a broken connection among the causes of `error`, such as of a save that failed by it."""
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        is_of_runtime = isinstance(cause, jax.errors.JaxRuntimeError) or STATUS.match(text)
        if is_of_runtime and any(word in text.lower() for word in CONTACT):
            return text[:300]
        cause = cause.__cause__ or cause.__context__
    return None
