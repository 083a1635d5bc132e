import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sora_jax.commands.main import main

TINY_RUN = """
BASE = {base!r}

COMMON = {{
    "data.path": {data!r},
    "data.crops": ((1, 16, 16),),
    "data.weights": (1.0,),
    "model.stages": ({{"space": 1, "time": 1, "width": 8, "num_blocks": 1}},),
    "train.num_steps": {num_steps},
    "train.batch_rows": 2,
    "train.log_every": 2,
    "train.eval_every": 100,
    "train.eval_batches": 1,
    "train.preview_every": 0,
    "train.checkpoint_every": 20,
}}

def get_sweep():
    yield from {members!r}
"""


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty clips of the quickstart's world."""
    d = tmp_path_factory.mktemp("clips")
    world = ["--world", "quickstart", "--clips", "40", "--seed", "3", "--workers", "1"]
    assert main(["data", "synth", *world, "--out", str(d / "videos")]) == 0
    assert main(["data", "build", "--videos", str(d / "videos"), "--workers", "1", "--out", str(d / "shards")]) == 0
    return d / "shards"


@pytest.fixture
def tiny_sweep(clips: Path, repository: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep file of tiny autoencoders with the given members."""

    def write(members: list[dict], num_steps: int = 200) -> Path:
        base = str(repository / "configs/autoencoder_quickstart.py")
        file = tmp_path / "tiny_sweep.py"
        file.write_text(TINY_RUN.format(base=base, data=str(clips), num_steps=num_steps, members=members))
        return file

    return write


@pytest.fixture
def quick_processes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started from here have one device, and compile fast rather than well."""
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


@pytest.fixture
def start(quick_processes: None) -> Callable[..., subprocess.Popen]:
    """Starts the program in a process of its own."""

    def run(*words: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "sora_jax.commands.main", *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)

    return run


@pytest.fixture
def sweep(capsys: pytest.CaptureFixture[str], quick_processes: None) -> Callable[..., tuple[int, dict, str]]:
    """Runs `sora-jax sweep` here: exit code, its JSON (an empty dict after an error), and what it said."""

    def run(*words: object) -> tuple[int, dict, str]:
        code = main(["sweep", *map(str, words)])
        said = capsys.readouterr()
        lines = said.out.strip().splitlines()
        return code, json.loads(lines[-1]) if lines else {}, said.err

    return run
