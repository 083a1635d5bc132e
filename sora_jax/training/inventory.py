"""What checkpoints a run has: listed, verified, pruned, from outside of the run."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error
from sora_jax.training.manifest import (
    ManifestError,
    find_flaws,
    is_verifiable,
    list_files,
    newest_good,
    read_manifest,
    resume_command,
)
from sora_jax.training.metrics import read_metrics
from sora_jax.training.retention import Retention
from sora_jax.training.run_lock import RunLock
from sora_jax.training.step_folders import ASIDE, SAVING, committed_steps, remove, steps_aside
from sora_jax.training.tiers import tiers_of

COMMITTED, UNVERIFIABLE, UNCOMMITTED, SET_ASIDE = "committed", "committed, no manifest", "not committed", "set aside"
GOOD, UNVERIFIED, DAMAGED = "good", "unverified", "damaged"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One folder of a tier. `saved_at` is in seconds since 1970; `loss` is the last that was logged up to the step,
    `held_out` the metrics of the evaluation at the step."""

    step: int
    tier: str
    status: str
    saved_at: float
    size_bytes: int
    loss: float | None
    held_out: dict[str, float]
    path: Path


def list_checkpoints(run_dir: Path) -> list[Entry]:
    """Every checkpoint of a run, whole or not, by step. Raises UserError if there is no run."""
    if not run_dir.is_dir():
        raise UserError(f"there is no run at {run_dir}; name the --workdir of a training run")
    rows = read_metrics(run_dir)
    entries = []
    for tier, directory in tiers_of(run_dir).items():
        for path in directory.iterdir() if directory.is_dir() else ():
            number, _, rest = path.name.partition(".")
            if number.isdigit() and path.is_dir():
                entries.append(_entry(path, int(number), f".{rest}" if rest else "", tier, rows))
    return sorted(entries, key=lambda entry: (entry.step, entry.tier, entry.path.name))


def _entry(path: Path, step: int, suffix: str, tier: str, rows: list[dict[str, Any]]) -> Entry:
    manifest = None
    try:
        manifest = read_manifest(path)
        status = COMMITTED if is_verifiable(path) else UNVERIFIABLE
    except ManifestError:
        status = COMMITTED
    if suffix:
        status = SET_ASIDE if suffix.startswith(ASIDE) else UNCOMMITTED
    loss = next((r.get("loss") for r in reversed(rows) if r["kind"] == "train" and r["step"] <= step), None)
    held_out = next((r for r in reversed(rows) if r["kind"] == "eval" and r["step"] == step), {})
    sizes = (path / name for name in list_files(path))
    return Entry(
        step=step,
        tier=tier,
        status=status,
        saved_at=manifest.saved_at if manifest and manifest.saved_at else path.stat().st_mtime,
        size_bytes=sum(file.stat().st_size for file in sizes if file.exists()),
        loss=loss,
        held_out={name: value for name, value in held_out.items() if name not in ("kind", "step")},
        path=path,
    )


def verify_run(run_dir: Path, step: int | None = None) -> dict[str, Any]:
    """Reads every file of every committed checkpoint (or of `step`) and compares it with what was written.

    Returns the steps that are good and those that cannot be verified, a tier each. Raises UserError for a damaged one,
    naming the file with both digests, the newest good step, and the command that goes on from it.
    """
    entries = [e for e in list_checkpoints(run_dir) if e.status in (COMMITTED, UNVERIFIABLE)]
    chosen = [e for e in entries if step in (None, e.step)]
    if not chosen:
        known = ", ".join(str(e.step) for e in entries) or "none"
        asked = "no checkpoint" if step is None else f"no checkpoint {step}"
        raise UserError(f"{run_dir} has {asked} to verify; committed are: {known}")
    flaws = {e.path: list(find_flaws(e.path, extra=True)) for e in chosen}
    found = {e.path: flaws[e.path] for e in chosen if flaws[e.path] and e.path.is_dir()}  # a live run prunes
    if found:
        raise _damaged(run_dir, found, len(chosen))
    by_status: dict[str, list[dict[str, Any]]] = {GOOD: [], UNVERIFIED: []}
    for entry in chosen:
        status = GOOD if entry.status == COMMITTED else UNVERIFIED
        by_status[status].append({"step": entry.step, "tier": entry.tier})
    return {"run": str(run_dir), **by_status, DAMAGED: []}


def _damaged(run_dir: Path, found: dict[Path, list[str]], count: int) -> UserError:
    tiers = list(tiers_of(run_dir).values())
    newest, good = max(s for t in tiers for s in committed_steps(t)), newest_good(tiers)
    words = "; ".join(f"{path} {flaws[0]}" + _more(len(flaws) - 1, "flaw") for path, flaws in list(found.items())[:3])
    if good is None:
        remedy = "no checkpoint is good: move them away to start again"
    elif good == newest:
        remedy = f"the newest one, step {good}, is good, and the run goes on from it"
    else:
        remedy = f"the newest good one is step {good}; to go on from there: {resume_command(run_dir, good)}"
    words += _more(len(found) - 3, "one")
    return UserError(f"{len(found)} of {count} checkpoints are damaged: {words}; {remedy}")


def _more(count: int, word: str) -> str:
    return f" (and {count} more {word}{'s' if count > 1 else ''})" if count > 0 else ""


def prune_run(run_dir: Path, retention: Retention, *, aside: bool = False, dry_run: bool = False) -> dict[str, Any]:
    """Deletes the checkpoints that `retention` does not keep, never the newest good one; `aside` those set aside too.

    Raises UserError while a run writes the directory.
    """
    entries = list_checkpoints(run_dir)
    scores = retention.read_scores(run_dir)
    if retention.keep_best and not scores:
        raise UserError(f"{run_dir} has no held-out evaluation to find the best by '{retention.keep_best}'")
    good = newest_good(list(tiers_of(run_dir).values()))
    doomed = []
    for directory in tiers_of(run_dir).values():
        steps = retention.superfluous(committed_steps(directory), scores)
        doomed += [directory / str(step) for step in steps if step != good]
        doomed += steps_aside(directory) if aside else []
    freed = sum(entry.size_bytes for entry in entries if entry.path in doomed)
    if not dry_run:
        try:
            with RunLock(run_dir):
                for path in doomed:
                    remove(path)
        except OSError as error:
            raise from_os_error(error, f"pruning {run_dir}") from error
    kept = [str(e.path) for e in entries if e.path not in doomed and SAVING not in e.path.name]
    return {"run": str(run_dir), "dry_run": dry_run, "deleted": [str(p) for p in doomed], "bytes": freed, "kept": kept}
