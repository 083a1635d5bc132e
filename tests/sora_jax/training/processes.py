"""Several real processes as one run, on this machine or in network namespaces."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.training.metrics import read_metrics
from sora_jax.training.step_folders import committed_steps

REPOSITORY = Path(__file__).resolve().parents[3]
TIMEOUT_S = 1200
XLA_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiled sooner
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # more processes than cores may be slow to meet
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Processes:
    """`count` processes of one script, with `devices` fake devices each; leaving it kills what is left of them."""

    def __init__(
        self,
        script: str,
        *words: object,
        count: int,
        devices: int,
        environment: dict[str, str] | None = None,
        each: Sequence[dict[str, str]] = (),
        prefixes: Sequence[Sequence[str]] = (),
        coordinator: str | None = None,
    ) -> None:
        coordinator = coordinator or f"127.0.0.1:{free_port()}"
        shared = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {XLA_FLAGS}",
            "SORA_COORDINATOR": coordinator,
            "SORA_NUM_PROCESSES": str(count),
            "SORA_START_TIMEOUT_S": "60",
            "SORA_SILENCE_S": "90",
            **(environment or {}),
        }
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, words)]
        self.all = [
            subprocess.Popen(
                [*(prefixes[i] if prefixes else ()), *command],
                env={**shared, "SORA_PROCESS_ID": str(i), **(each[i] if each else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(count)
        ]
        self.errors: list[str] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.all:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def wait(self) -> list[int]:
        """The exit codes; `errors` then holds what each said on stderr."""
        outputs = [process.communicate(timeout=TIMEOUT_S) for process in self.all]
        self.outputs, self.errors = [out for out, _ in outputs], [err for _, err in outputs]
        return [process.returncode for process in self.all]

    def result(self) -> dict[str, Any]:
        """What process 0 printed last."""
        return json.loads(self.outputs[0].splitlines()[-1])

    def wait_for_checkpoint(self, run: Path, after: int = 0) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline and all(process.poll() is None for process in self.all):
            if committed_steps(run / "checkpoints")[-1:] > [after]:
                return
            time.sleep(0.05)
        raise AssertionError(f"no checkpoint after step {after}: {self.wait()}, {self.errors}")


def run(script: str, *words: object, count: int, devices: int, **options: Any) -> dict[str, Any]:
    """What process 0 prints last, once all have ended with the exit code that it says."""
    with Processes(script, *words, count=count, devices=devices, **options) as processes:
        codes = processes.wait()
        assert set(codes) <= {0, 75}, processes.errors
        result = processes.result()
        assert codes == [result.get("exit_code", 0)] * count, processes.errors
        return result


def losses(run_dir: Path) -> np.ndarray:
    """The training loss of each step that was logged."""
    return np.array([row["loss"] for row in read_metrics(run_dir) if row["kind"] == "train"])
