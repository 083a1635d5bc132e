"""Checkpoints of a run: `RUN/checkpoints/STEP/`, saved in the background, and only committed steps are read.

A step holds four parts, so that each can be read alone: `params`, `ema`, `state` (step, optimizer, counters) and
`data` (JSON: the position in the data and what data it is), metadata that says which config, code and data made it,
and a manifest with the SHA-256 of every file. The device's arrays are copied before `save` returns; Orbax writes them
in the background; then process 0 takes the digests, and a rename commits the step. Only then are older steps deleted,
so that a save that fails (a full disk, a kill) costs nothing but itself.

This module is the way in: `step_folders` names the folders, `manifest` verifies them, `checkpoint_io` talks to Orbax,
`retention` says what is kept, `tiers` keeps a second copy elsewhere.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from data_pipeline.errors import SystemFailure, UserError
from sora_jax.config import TrainConfig
from sora_jax.training.checkpoint_io import (
    LoadedRun,
    begin_save,
    load_params,
    load_parts,
    load_state,
    read_metadata,
    saved_shapes,
    split_state,
)
from sora_jax.training.distributed import agreed, gathered, is_leader
from sora_jax.training.manifest import damage, find_flaws, find_verified, verify, warn_of_copies, write_manifest
from sora_jax.training.provenance import describe_run
from sora_jax.training.retention import Retention
from sora_jax.training.step import TrainState
from sora_jax.training.step_folders import (
    CHECKPOINTS,
    commit,
    committed_steps,
    discard_save,
    find_checkpoint,
    remove,
    staging,
    sweep,
)
from sora_jax.training.tiers import copy_step, open_fast_tier

__all__ = [
    "CHECKPOINTS",
    "Checkpoints",
    "LoadedRun",
    "Retention",
    "committed_steps",
    "describe_run",
    "find_checkpoint",
    "find_verified",
    "load_params",
    "load_parts",
    "read_metadata",
    "saved_shapes",
    "verify",
]

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run; `metadata` is stored with each, and `retention` says which are kept.

    With a folder `fast_tier`, saves go there, and one that passes a multiple of `durable_every` steps is copied to the
    run directory behind them. Every process of the run has one of these and calls `save` and `restore` together.
    Use it as a context manager: leaving it waits for the last save.
    """

    def __init__(
        self,
        run_dir: Path,
        retention: Retention,
        metadata: Mapping[str, Any],
        *,
        fast_tier: Path | None = None,
        durable_every: int = 0,
        hashes: bool = True,
    ) -> None:
        self.directory = run_dir / CHECKPOINTS
        self._run_dir, self._retention, self._metadata = run_dir, retention, dict(metadata)
        self._fast_tier, self._durable_every, self._hashes = fast_tier, durable_every, hashes
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-copy")
        self._pending: Future[None] | None = None
        self._copies: dict[int, Future[None]] = {}
        self._is_swept = False

    @classmethod
    def of_run(cls, run_dir: Path, config: TrainConfig, metadata: Mapping[str, Any]) -> "Checkpoints":
        """Those of the run directory that `open_run` has opened, as `config` wants them."""
        return cls(
            run_dir,
            Retention(config.keep_last, config.keep_every, config.keep_best),
            metadata,
            fast_tier=open_fast_tier(config.fast_dir, run_dir),
            durable_every=config.durable_every,
            hashes=config.restore_check == "sha256",
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        try:
            self.wait()
        except UserError as late:
            if kind is None:
                raise
            logger.error("%s", late)
        finally:
            self._writer.shutdown()
            self._copier.shutdown()

    @property
    def steps(self) -> list[int]:
        """The committed steps of both tiers, ascending."""
        return sorted({step for tier in self._tiers for step in committed_steps(tier)})

    @property
    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps, default=None)

    def folder(self, step: int) -> Path:
        """Where `step` is, or will be when its save is committed."""
        return next((t / str(step) for t in self._tiers if (t / str(step)).is_dir()), self._tiers[0] / str(step))

    def save(self, state: TrainState, step: int, data: Mapping[str, Any], *, last: bool = False) -> None:
        """Starts saving `state` as `step`; the caller may donate its arrays as soon as this returns.

        The `last` one of a process goes to both tiers. Waits for a save still under way. Raises UserError when that
        one, or this one, meets a full disk.
        """
        self._wait_for_save()
        if agreed("is saved", is_leader() and self._make_room(step)):
            self._copy_if_due(step, last)
            return
        try:
            parts = {**split_state(state), "data": {"step": step, **data}}
            response = begin_save(staging(self._tiers[0], step), parts, self._metadata)
        except Exception as error:
            raise self._failed(error) from error
        self._pending = self._writer.submit(self._finish, response, step, last)

    def raise_failure(self) -> None:
        """Raises UserError if a save or copy under way has already failed; never waits."""
        if self._pending is not None and self._pending.done():
            self._wait_for_save()
        self._collect_copies(wait=False)

    def wait(self) -> None:
        """Waits for the save and the copies under way, if any. Raises UserError when one failed."""
        self._wait_for_save()
        self._collect_copies(wait=True)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """(state, data) of a committed step, laid out as `abstract` says (shapes, dtypes, shardings).

        Raises UserError for a damaged checkpoint, naming the newest good one before it, and for one of another model.
        """
        return load_state(self._find_undamaged(step), abstract)

    @property
    def _tiers(self) -> list[Path]:
        return [self.directory] if self._fast_tier is None else [self._fast_tier, self.directory]

    def _find_undamaged(self, step: int) -> Path:
        """The step's folder in the first tier whose copy is what was written: either is the same state."""
        flaws: list[tuple[Path, str]] = []
        for path in (tier / str(step) for tier in self._tiers if step in committed_steps(tier)):
            mine = next(find_flaws(path, hashes=self._hashes, share=(jax.process_index(), jax.process_count())), None)
            flaw = next((flaw for flaw in gathered("flaw", mine) if flaw), None)
            if flaw is None:
                warn_of_copies(flaws, path)
                return path
            flaws.append((path, flaw))
        if not flaws:
            find_checkpoint(self._run_dir, step)
        raise damage(*flaws[-1], self._tiers, self._run_dir)

    def _make_room(self, step: int) -> bool:
        """Whether the step is committed already; if not, nothing of an earlier attempt at it is left."""
        try:
            for tier in self._tiers if not self._is_swept else ():
                tier.mkdir(parents=True, exist_ok=True)
                sweep(tier)
        except OSError as error:
            raise self._failed(error) from error
        self._is_swept = True
        return step in self.steps

    def _finish(self, response: Any, step: int, last: bool) -> None:
        """In the background: waits for Orbax (on process 0, until all processes have written), commits and prunes."""
        tier = self._tiers[0]
        try:
            response.result()
            if not is_leader():
                return
            write_manifest(staging(tier, step))
            commit(tier, step)
        except BaseException:
            if is_leader():
                discard_save(tier, step)
            raise
        self._copy_if_due(step, last)
        self._prune(tier)

    def _copy_if_due(self, step: int, last: bool) -> None:
        """Starts copying a step of the fast tier if a multiple of `durable_every` lies between it and the newest copy:
        that is alike before and after a restart."""
        if self._fast_tier is None or not is_leader():
            return
        newest = max([*committed_steps(self.directory), *self._copies], default=0)
        every = self._durable_every or 1
        if last or step // every > newest // every:
            self._copies[step] = self._copier.submit(self._copy, self._fast_tier / str(step))

    def _copy(self, source: Path) -> None:
        copy_step(source, self.directory)
        self._prune(self.directory)

    def _prune(self, tier: Path) -> None:
        """Deletes what need not be kept of a tier whose newest step is committed. The fast one keeps the last ones."""
        is_fast = tier == self._fast_tier
        retention = Retention(self._retention.keep_last) if is_fast else self._retention
        scores = retention.read_scores(self._run_dir)
        for step in retention.superfluous(committed_steps(tier), scores):
            copy = self._copies.get(step) if is_fast else None
            if copy is None or copy.done():
                remove(tier / str(step))

    def _wait_for_save(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise self._failed(error) from error

    def _collect_copies(self, wait: bool) -> None:
        for step in [s for s, copy in self._copies.items() if wait or copy.done()]:
            try:
                self._copies.pop(step).result()
            except Exception as error:
                raise self._failed(error) from error

    def _failed(self, error: BaseException) -> UserError:
        """What to say of a save that met `error`."""
        if isinstance(error, UserError):
            return error
        latest = self.latest
        kept = f"the last good checkpoint is step {latest}" if latest is not None else "there is no earlier checkpoint"
        tiers = " or ".join(map(str, self._tiers))
        chain, cause = [], error
        while cause is not None:
            chain.append(str(cause))
            cause = cause.__cause__ or cause.__context__
        if any("No space left" in text or "quota exceeded" in text for text in chain):
            return SystemFailure(f"the disk is full while saving into {tiers}; {kept}; free some space and run again")
        return SystemFailure(f"saving into {tiers} failed ({' '.join(str(error).split())[:300]}); {kept}")
