"""Starting a run from another run's parameters: by path, with a report; optimizer, step and data plan are fresh."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from data_pipeline.errors import UserError
from sora_jax.parallel import path_of
from sora_jax.training.checkpoint import find_verified, load_parts, saved_shapes
from sora_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """What came from where: paths of parameters, such as `dit/blocks/mlp_in/kernel`."""

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """in the model, not in the source: they keep their fresh values"""
    unexpected: tuple[str, ...]
    """in the source, not in the model: they are left out"""
    other_shape: tuple[str, ...]
    """in both, as `path: source shape, model shape`: they keep their fresh values"""

    def summary(self) -> str:
        """One line; the lists are in the run's `init_from.json`."""
        counts = ", ".join(
            f"{len(paths)} {name}{f' ({_few(paths)})' if paths else ''}"
            for name, paths in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.other_shape),
            )
        )
        return f"{len(self.loaded)} parameters from {self.source}; {counts}"


def parse_reference(reference: str) -> tuple[str, int | None]:
    """`RUN` or `RUN@step` as (run, step)."""
    run, at, step = reference.rpartition("@")
    return (run, int(step)) if at and step.isdigit() else (reference, None)


def warm_start(reference: str, state: TrainState) -> tuple[TrainState, WarmStart]:
    """`state` with the parameters and EMA of `reference` where path and shape agree, and what agreed.

    Raises UserError for a run or step that is not there, a damaged checkpoint, or one that shares no parameter.
    """
    run, step = parse_reference(reference)
    path = find_verified(run, step)
    params, report = _load_part(path, "params", state.params, f"{run}@{path.name}")
    ema, _ = _load_part(path, "ema", state.ema, report.source)
    if not report.loaded:
        raise UserError(
            f"--init_from {reference} shares no parameter with this model: its own are {_few(report.unexpected)}, "
            f"the model's are {_few(report.missing or report.other_shape)}"
        )
    return dataclasses.replace(state, params=params, ema=ema), report


def _load_part(path: Path, part: str, own: Any, source_name: str) -> tuple[Any, WarmStart]:
    model = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(own)}
    shapes = saved_shapes(path, part)
    source = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    fits = {name for name in model.keys() & source.keys() if model[name].shape == source[name].shape}
    elsewhere = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(keys: tuple[Any, ...], leaf: Any) -> Any:
        name = path_of(keys)
        return leaf.update(sharding=model[name].sharding if name in fits else elsewhere)

    saved = load_parts(path, {part: jax.tree_util.tree_map_with_path(target, shapes)})[part]
    values = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    merged = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: values[path_of(keys)].astype(leaf.dtype) if path_of(keys) in fits else leaf, own
    )
    other = sorted(n for n in (model.keys() & source.keys()) - fits)
    report = WarmStart(
        source=source_name,
        loaded=tuple(sorted(fits)),
        missing=tuple(sorted(model.keys() - source.keys())),
        unexpected=tuple(sorted(source.keys() - model.keys())),
        other_shape=tuple(f"{n}: {source[n].shape}, {model[n].shape}" for n in other),
    )
    return merged, report


def _few(paths: tuple[str, ...], limit: int = 4) -> str:
    return ", ".join(paths[:limit]) + (f", and {len(paths) - limit} more" if len(paths) > limit else "")
