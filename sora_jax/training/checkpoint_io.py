"""One checkpoint's folder, written and read through Orbax: its parts, its metadata, its parameters alone."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import absl.logging
import jax
from orbax.checkpoint import v1 as ocp

from data_pipeline.errors import UserError
from sora_jax.parallel import path_of
from sora_jax.training.manifest import FORMAT, damage, find_verified
from sora_jax.training.step import TrainState
from sora_jax.training.step_folders import discard_save

IMPORTED_FROM = "imported_from"
"""In the metadata of a step that was not trained here, and has no state of an optimizer."""

logger = logging.getLogger(__name__)
# Orbax tells every phase of every save, and prints the trace of what it then raises; ours is one line each.
absl.logging.set_verbosity(absl.logging.FATAL)


def begin_save(folder: Path, parts: Mapping[str, Any], metadata: Mapping[str, Any]) -> Any:
    """Copies the parts off the devices and starts writing into the folder of `staging`; `.result()` of what it returns
    waits for all processes. Where it cannot start, nothing is left."""
    about = {**metadata, "format": FORMAT}
    try:
        with _context():
            return ocp.save_checkpointables_async(folder.absolute(), dict(parts), custom_metadata=about)
    except BaseException:
        discard_save(folder.parent, int(folder.name.partition(".")[0]))
        raise


def split_state(state: TrainState) -> dict[str, Any]:
    """The parts of a checkpoint that hold arrays."""
    rest = {
        "step": state.step,
        "opt_state": state.opt_state,
        "skipped": state.skipped,
        "nonfinite_in_a_row": state.nonfinite_in_a_row,
    }
    return {"params": state.params, "ema": state.ema, "state": rest}


def load_state(path: Path, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """(state, data), laid out as `abstract` says (shapes, dtypes, shardings). `verify` it first.

    Raises UserError for a checkpoint of another model, and one that holds parameters alone.
    """
    if source := read_metadata(path).get(IMPORTED_FROM):
        raise UserError(
            f"the checkpoint {path} was imported from {source} and holds parameters only, no optimizer to go on with; "
            f"train in another --workdir with --init_from {path.parents[1]}@{path.name}"
        )
    _check_shapes(path, abstract.params)
    loaded = load_parts(path, {**split_state(abstract), "data": None})
    return TrainState(params=loaded["params"], ema=loaded["ema"], **loaded["state"]), loaded["data"]


def load_parts(path: Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The named parts of the checkpoint at `path`, laid out as `abstract` says. `verify` it first."""
    try:
        with _context():
            return ocp.load_checkpointables(path.absolute(), dict(abstract))
    except Exception as error:
        logger.debug("Orbax could not load %s", path, exc_info=True)
        raise damage(path, "does not load: cut short, or written by other code") from error


def read_metadata(path: Path) -> Mapping[str, Any]:
    """What `describe_run` said when the checkpoint at `path` was saved. Raises UserError if it is damaged."""
    with _context():
        found = ocp.checkpointables_metadata(path.absolute()).custom_metadata
    if not found:
        raise damage(path, "has metadata that cannot be read")
    return found


def saved_shapes(path: Path, part: str) -> Any:
    """The tree of `jax.ShapeDtypeStruct`s that the part `params` or `ema` was saved as."""
    try:
        with _context():
            tree = ocp.checkpointables_metadata(path.absolute()).metadata[part]
    except Exception as error:
        raise damage(path, f"has a part '{part}' that cannot be read") from error
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """Parameters of a run, with the config, fingerprints and step that they come from."""

    params: dict[str, Any]
    step: int
    config: dict[str, Any]
    fingerprints: dict[str, str]


def load_params(
    run_dir: str | Path,
    step: int | None = None,
    *,
    ema: bool = True,
    shardings: Callable[[Any], Any] | None = None,
) -> LoadedRun:
    """The EMA (or raw) parameters of a run, on the first device, or as `shardings` says of their shapes.

    Raises UserError for a run without a committed checkpoint, or a damaged one.
    """
    path = find_verified(run_dir, step)
    metadata = read_metadata(path)
    part = "ema" if ema else "params"
    shapes = saved_shapes(path, part)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: one, shapes) if shardings is None else shardings(shapes)
    shapes = jax.tree.map(lambda x, sharding: x.update(sharding=sharding), shapes, places)
    params = load_parts(path, {part: shapes})[part]
    return LoadedRun(params, int(path.name), dict(metadata["config"]), dict(metadata["fingerprints"]))


def _context() -> ocp.Context:
    """Orbax's context: plain dicts named `data` are JSON, everything else is a tree of arrays."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


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
