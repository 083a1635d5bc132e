"""What made a run: config, code, data and environment, stored in `run.json` and with every checkpoint.

Of the environment's variables only those are kept that change what a run does or name its job: others may be secrets.
"""

import os
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
VARIABLES = frozenset({"XLA_FLAGS", "LIBTPU_INIT_ARGS", "SLURM_JOB_ID"})
VARIABLE_PREFIXES = ("JAX_", "NCCL_", "SORA_")
MAX_PATCH_BYTES = 2**20
ROOT = Path(sora_jax.__file__).parents[1]


def describe_run(config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What makes this run, as JSON. Every process must call it: all hosts are named."""
    return {
        "config": dict(config),
        "fingerprints": dict(fingerprints),
        "code": code_version(),
        "environment": {
            "command": command_line(),
            "directory": os.getcwd(),
            "variables": variables(os.environ),
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
    described = _git(ROOT, "describe", "--always", "--dirty", "--tags", "--abbrev=40").decode().strip()
    return f"{sora_jax.__version__}+{described}" if described else sora_jax.__version__


def uncommitted_changes(root: Path = ROOT, max_bytes: int = MAX_PATCH_BYTES) -> bytes:
    """The working tree's difference to its commit, for `git apply`, after the names of files that git does not know.

    Empty for a clean tree, and outside of one; cut after `max_bytes`, which its last line then says.
    """
    unknown = _git(root, "ls-files", "--others", "--exclude-standard").splitlines(keepends=True)
    patch = b"".join(b"# not in git: " + name for name in unknown)
    patch += _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff")
    if len(patch) <= max_bytes:
        return patch
    return patch[:max_bytes] + f"\n# cut after {max_bytes:,} of {len(patch):,} bytes\n".encode()


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of an environment that a run's behaviour hangs on."""
    return {n: environment[n] for n in sorted(environment) if n in VARIABLES or n.startswith(VARIABLE_PREFIXES)}


def _git(root: Path, *words: str) -> bytes:
    """What git says of the working tree at `root`; nothing where there is none, or no git."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return b""
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


def command_line() -> str:
    """How this process was started, as a shell would read it."""
    program = Path(sys.argv[0]).name
    words = ["sora-jax"] if program == "main.py" else [program]
    return shlex.join([*words, *sys.argv[1:]])
