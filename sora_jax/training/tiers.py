"""Two tiers of checkpoints: a fast one for every save, and the run directory for a copy every so often.

With `config.train.fast_dir` a save goes to `FAST_DIR/ID_OF_THE_RUN/checkpoints`, on storage that is quick and may be
lost (a local NVMe disk, a burst buffer), and process 0 copies a step to the run directory in the background whenever a
multiple of `durable_every` has been passed, and at the end. A run goes on from the newest step of either tier, so it
works when the fast one is gone. All processes of a run must see the fast tier, as they must see the run directory.

Orbax's emergency and multi-tier checkpoint managers go further: each host keeps its own shards on its own disk or RAM
disk, and what a lost host held comes from a replica on another slice over the network. They need several slices with
a replicated axis and work on TPU only, which is where they come in: for a pod whose hosts share no fast storage.
"""

import shutil
from pathlib import Path

from data_pipeline.errors import UserError, from_os_error
from sora_jax.training.distributed import barrier, is_leader
from sora_jax.training.manifest import find_flaws
from sora_jax.training.step_folders import (
    CHECKPOINTS,
    commit,
    committed_steps,
    discard_save,
    fast_tier,
    staging,
    sync,
    tiers_of,
)

__all__ = ["copy_step", "fast_tier", "known_steps", "open_fast_tier", "tiers_of"]


def open_fast_tier(fast_dir: str, run_dir: Path) -> Path | None:
    """`fast_tier`, made. Raises UserError where it cannot be made, or a process does not see what process 0 made."""
    tier = fast_tier(fast_dir, run_dir)
    if tier is None:
        return None
    if is_leader():
        try:
            tier.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"making the fast tier config.train.fast_dir={fast_dir}") from error
    barrier("fast tier")
    if not tier.is_dir():
        raise UserError(
            f"config.train.fast_dir={fast_dir} is not on a file system that all hosts share: one does not see {tier}; "
            "choose such a folder, or leave it empty to save into the run directory"
        )
    return tier


def known_steps(run_dir: Path, fast_dir: str = "") -> list[int]:
    """The committed steps of a run in either tier, ascending."""
    tier = fast_tier(fast_dir, run_dir)
    return sorted({*committed_steps(run_dir / CHECKPOINTS), *(committed_steps(tier) if tier else ())})


def copy_step(source: Path, directory: Path) -> None:
    """Copies a committed step into another tier and commits it there; a failed copy leaves nothing behind.

    Raises OSError, also where the copy is not what was written.
    """
    step = int(source.name)
    if step in committed_steps(directory):
        return
    copy = staging(directory, step)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        discard_save(directory, step)
        shutil.copytree(source, copy)
        flaw = next(find_flaws(copy), None)
        if flaw:
            raise OSError(f"the copy of {source} in {directory} {flaw}")
        for path in (copy, *copy.rglob("*")):
            sync(path)
        commit(directory, step)
    except BaseException:
        discard_save(directory, step)
        raise
