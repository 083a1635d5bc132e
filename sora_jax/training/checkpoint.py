"""Checkpoints of a run: Orbax behind one class, `RUN/checkpoints/STEP/`.

A step holds four parts, so that each can be read alone: `params`, `ema`, `state` (step, optimizer, counters) and
`data` (JSON: the position in the data and what data it is), and metadata that says which config, code and data made
it. Saving is asynchronous: the device's arrays are copied before the call returns, a thread writes them, and the
rename of the finished folder commits it; a step without its commit is never read.

Orbax stores array chunks without checksums (a flipped byte loads as another number), so the writing thread adds the
SHA-256 of every file after the commit. Reading verifies them: a damaged checkpoint is an error, not a wrong model.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import absl.logging
import jax
import orbax.checkpoint
from orbax.checkpoint import v1 as ocp

import sora_jax
from data_pipeline.errors import UserError
from sora_jax.parallel import path_of
from sora_jax.training.step import TrainState

CHECKPOINTS = "checkpoints"
DIGESTS = "digests.json"
COMMITTED = "commit_success.txt"
UNCOMMITTED = "*.orbax-checkpoint-tmp*"

logger = logging.getLogger(__name__)
# Orbax tells every phase of every save, and prints the trace of what it then raises; ours is one line each.
absl.logging.set_verbosity(absl.logging.FATAL)


class Checkpoints:
    """The checkpoints of one run, newest `keep_last` kept; `metadata` is stored with each.

    One process writes a folder. Use it as a context manager: leaving it waits for the last save.
    """

    def __init__(self, run_dir: Path, keep_last: int, metadata: Mapping[str, Any]) -> None:
        self.directory = run_dir / CHECKPOINTS
        self._metadata = dict(metadata)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        policy = ocp.training.preservation_policies.LatestN(max(1, keep_last))
        try:
            self._orbax = ocp.training.Checkpointer(
                self.directory.absolute(), context=_context(), preservation_policy=policy, cleanup_tmp_directories=True
            )
        except OSError as error:
            raise _save_error(error, self.directory, None) from error

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
            self._thread.shutdown()

    @property
    def latest(self) -> int | None:
        """The newest committed step, or None."""
        steps = committed_steps(self.directory)
        return steps[-1] if steps else None

    def save(self, state: TrainState, step: int, data: Mapping[str, Any]) -> None:
        """Starts saving `state` as `step`; the caller may donate its arrays as soon as this returns.

        Waits for a save still under way. Raises UserError when that one, or this one, meets a full disk.
        """
        self.wait()
        if step in committed_steps(self.directory):
            return
        parts = {**_parts(state), "data": {"step": step, **data}}
        try:
            response = self._orbax.save_checkpointables_async(step, parts, force=True, custom_metadata=self._metadata)
        except Exception as error:
            raise _save_error(error, self.directory, self.latest) from error
        self._pending = self._thread.submit(self._finish, response, self.directory / str(step))

    def raise_failure(self) -> None:
        """Raises UserError if the save under way has already failed; never waits."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save under way, if any. Raises UserError when it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise _save_error(error, self.directory, self.latest) from error

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """(state, data) of a committed step, laid out as `abstract` says (shapes, dtypes, shardings).

        Raises UserError for a damaged checkpoint, naming the newest good one before it, and for one of another model.
        """
        path = self.directory / str(step)
        verify(path)
        _check_shapes(path, abstract.params)
        loaded = load_parts(path, {**_parts(abstract), "data": None})
        state = loaded["state"]
        return TrainState(params=loaded["params"], ema=loaded["ema"], **state), loaded["data"]

    @staticmethod
    def _finish(response: Any, path: Path) -> None:
        response.result()  # on process 0 it returns after all processes have written and the rename has committed
        if jax.process_index() != 0:
            return
        digests = {name: _digest(path / name) for name in _files(path)}
        temporary = path / f"{DIGESTS}.tmp"
        temporary.write_text(json.dumps(digests))
        temporary.replace(path / DIGESTS)


def describe_run(config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What made a run, as JSON: stored with every checkpoint."""
    return {
        "config": dict(config),
        "fingerprints": dict(fingerprints),
        "code": code_version(),
        "jax": jax.__version__,
        "orbax": orbax.checkpoint.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def code_version() -> str:
    """The package's version, with `git describe` where it runs from a working tree."""
    root = Path(sora_jax.__file__).parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return sora_jax.__version__
    described = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{sora_jax.__version__}+{described.stdout.strip()}" if described.returncode == 0 else sora_jax.__version__


def committed_steps(directory: Path) -> list[int]:
    """The steps of `RUN/checkpoints` whose save was committed, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and (p / COMMITTED).exists())


def find_checkpoint(run: str | Path, step: int | None = None) -> Path:
    """The folder of a run's checkpoint: `step`, or the newest. Raises UserError when there is none."""
    directory = Path(run) / CHECKPOINTS
    if not Path(run).is_dir():
        raise UserError(f"there is no run at {run}; name the --workdir of a training run")
    steps = committed_steps(directory)
    if step is not None and step not in steps:
        begun = any(directory.glob(f"{step}{UNCOMMITTED.removeprefix('*')}")) or (directory / str(step)).exists()
        why = "was never committed (its save was interrupted)" if begun else "does not exist"
        raise UserError(f"checkpoint {step} of {run} {why}; committed are: {_listed(steps)}")
    if not steps:
        raise UserError(f"{run} has no committed checkpoint yet; train it first")
    return directory / str(steps[-1] if step is None else step)


def read_metadata(path: Path) -> Mapping[str, Any]:
    """What `describe_run` said when the checkpoint at `path` was saved. Raises UserError if it is damaged."""
    with _context():
        found = ocp.checkpointables_metadata(path.absolute()).custom_metadata
    if not found:
        raise _damage(path, "its metadata cannot be read")
    return found


def saved_shapes(path: Path, part: str) -> Any:
    """The tree of `jax.ShapeDtypeStruct`s that the part `params` or `ema` was saved as."""
    try:
        with _context():
            tree = ocp.checkpointables_metadata(path.absolute()).metadata[part]
    except Exception as error:
        raise _damage(path, f"'{part}' cannot be read") from error
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _check_shapes(path: Path, params: Any) -> None:
    """Raises UserError naming the first parameters that the model and the checkpoint do not share."""
    saved = {path_of(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(saved_shapes(path, "params"))}
    model = {path_of(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(params)}
    differing = [
        f"{name} is {saved.get(name, 'absent')} there and {model.get(name, 'absent')} here"
        for name in sorted(saved.keys() | model.keys())
        if saved.get(name) != model.get(name)
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"the checkpoint {path} is of another model: {'; '.join(differing[:3])}{more}; use the config that the "
            "run was made with, or start a new run with --init_from"
        )


def load_parts(path: Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The named parts of the checkpoint at `path`, laid out as `abstract` says. `verify` it first."""
    try:
        with _context():
            return ocp.load_checkpointables(path.absolute(), dict(abstract))
    except Exception as error:
        logger.debug("Orbax could not load %s", path, exc_info=True)
        raise _damage(path, "it does not load: cut short, or written by other code") from error


def verify(path: Path) -> None:
    """Raises UserError if a file of the checkpoint at `path` is not what was written, naming the last good step."""
    flaw = find_damage(path)
    if flaw:
        raise _damage(path, flaw)


def find_damage(path: Path) -> str | None:
    """The first difference between the checkpoint's files and the digests taken when they were written."""
    try:
        expected = json.loads((path / DIGESTS).read_text())
    except FileNotFoundError:
        logger.info("%s has no digests (its run was killed just after the commit): not verified", path)
        return None
    except ValueError:
        return f"{DIGESTS} is not JSON"
    if not isinstance(expected, dict):
        return f"{DIGESTS} holds no digests"
    for name, digest in expected.items():
        if not (path / name).is_file():
            return f"its file {name} is missing"
        if _digest(path / name) != digest:
            return f"its file {name} is not what was written"
    return None


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """Parameters of a run, with the config, fingerprints and step that they come from."""

    params: dict[str, Any]
    step: int
    config: dict[str, Any]
    fingerprints: dict[str, str]


def load_params(
    run_dir: str | Path, step: int | None = None, *, ema: bool = True, sharding: jax.sharding.Sharding | None = None
) -> LoadedRun:
    """The EMA (or raw) parameters of a run, all on the first device unless `sharding` says otherwise.

    Raises UserError for a run without a committed checkpoint, or a damaged one.
    """
    path = find_checkpoint(run_dir, step)
    verify(path)
    metadata = read_metadata(path)
    part = "ema" if ema else "params"
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: x.update(sharding=sharding), saved_shapes(path, part))
    params = load_parts(path, {part: shapes})[part]
    return LoadedRun(params, int(path.name), dict(metadata["config"]), dict(metadata["fingerprints"]))


def _context() -> ocp.Context:
    """Orbax's context: plain dicts named `data` are JSON, everything else is a tree of arrays."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _parts(state: TrainState) -> dict[str, Any]:
    rest = {
        "step": state.step,
        "opt_state": state.opt_state,
        "skipped": state.skipped,
        "nonfinite_in_a_row": state.nonfinite_in_a_row,
    }
    return {"params": state.params, "ema": state.ema, "state": rest}


def _files(path: Path) -> Iterator[str]:
    for folder, _, names in os.walk(path):
        yield from (str((Path(folder) / name).relative_to(path)) for name in names if not name.startswith(DIGESTS))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path, flaw: str) -> UserError:
    earlier = [s for s in committed_steps(path.parent) if s < int(path.name)]
    good = next((s for s in reversed(earlier) if find_damage(path.parent / str(s)) is None), None)
    remedy = f"the newest good one before it is step {good}: " if good is not None else "no earlier one is good: "
    action = "to go on from there" if good is not None else "to start again"
    return UserError(f"the checkpoint {path} is damaged: {flaw}; {remedy}move {path} away {action}")


def _save_error(error: BaseException, directory: Path, latest: int | None) -> UserError:
    kept = f"the last good checkpoint is step {latest}" if latest is not None else "there is no earlier checkpoint"
    chain, cause = [], error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    if any("No space left" in text or "quota exceeded" in text for text in chain):
        return UserError(f"the disk is full while saving into {directory}; {kept}; free some space and run again")
    return UserError(f"saving into {directory} failed ({' '.join(str(error).split())[:300]}); {kept}")


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
