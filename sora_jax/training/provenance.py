"""What made a run: config, code, data and environment, stored in `run.json` and with every checkpoint."""

import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import sora_jax
from sora_jax.training.distributed import gathered

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe_run(config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What makes this run, as JSON. Every process must call it: all hosts are named."""
    return {
        "config": dict(config),
        "fingerprints": dict(fingerprints),
        "code": code_version(),
        "environment": {
            "command": command_line(),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "hosts": dict(Counter(gathered("hosts", socket.gethostname()))),
            "python": platform.python_version(),
            "system": platform.platform(),
            "packages": {name: version(name) for name in PACKAGES},
        },
    }


def code_version() -> str:
    """The package's version, with the commit (and "-dirty") where it runs from a working tree."""
    root = Path(sora_jax.__file__).parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags", "--abbrev=40"]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return sora_jax.__version__
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{sora_jax.__version__}+{described.stdout.strip()}" if described.returncode == 0 else sora_jax.__version__


def command_line() -> str:
    """How this process was started, as a shell would read it."""
    program = Path(sys.argv[0]).name
    words = ["sora-jax"] if program == "main.py" else [program]
    return shlex.join([*words, *sys.argv[1:]])
