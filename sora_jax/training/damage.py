"""Damage on purpose: a byte flipped, a file cut short or gone, in a copy of a checkpoint, to see what finds it."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.training.inventory import verify_run
from sora_jax.training.manifest import DIGESTS, list_files, verify
from sora_jax.training.step_folders import CHECKPOINTS, find_checkpoint

KINDS = ("flip", "truncate", "delete")


def measure_detection(run_dir: Path, folder: Path, samples: int, seed: int = 0) -> dict[str, Any]:
    """Damages a copy (in `folder`) of a run's newest checkpoint `samples` times, each time in one file, and undoes it.

    Counts how often `checkpoint verify` reports the file, and how often a restore refuses the step. Raises UserError
    if the copy is not good before, and after, all this.
    """
    source = find_checkpoint(run_dir)
    copy = folder / "run"
    target = copy / CHECKPOINTS / source.name
    shutil.copytree(source, target)
    verify_run(copy)
    draw, names = random.Random(seed), sorted([*list_files(target), DIGESTS])
    tried, detected, refused = Counter(), Counter(), 0
    missed = []
    for _ in range(samples):
        name = draw.choice(names)
        kind = draw.choice(KINDS if (target / name).stat().st_size else KINDS[-1:])
        undo = _damage(target / name, kind, draw)
        tried[kind] += 1
        is_found = name in _reported(lambda: verify_run(copy))
        detected[kind] += is_found
        refused += name in _reported(lambda: verify(target))
        missed += [] if is_found else [f"{kind} {name}"]
        undo()
    verify_run(copy)
    return {
        "run": str(run_dir),
        "step": int(source.name),
        "files": len(names),
        "samples": samples,
        "detected": sum(detected.values()),
        "restore_refused": refused,
        "kinds": {kind: {"tried": tried[kind], "detected": detected[kind]} for kind in KINDS},
        "missed": missed,
    }


def _reported(check: Callable[[], Any]) -> str:
    """The words of the error that `check` raises; none if it finds nothing."""
    try:
        check()
    except UserError as error:
        return str(error)
    return ""


def _damage(path: Path, kind: str, draw: random.Random) -> Callable[[], Any]:
    """Damages a file. Returns what puts it right again."""
    if kind == "delete":
        content = path.read_bytes()
        path.unlink()
        return lambda: path.write_bytes(content)
    position = draw.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(position)
        tail = file.read(1 if kind == "flip" else -1)
        file.seek(position)
        if kind == "flip":
            file.write(bytes([tail[0] ^ 1 << draw.randrange(8)]))
        else:
            file.truncate()
    return lambda: _write_at(path, position, tail)


def _write_at(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)
