"""`config.data` as the stages of a run: which data sets, rows and shift of noise levels from which step on.

    config.data.stages = (dict(start=0), dict(start=20_000, path=…, row_tokens=…, batch_rows=…, reference_tokens=…))

A stage names what differs from the rest of `config.data`, and may set its own `batch_rows` (else `config.train`'s) and
`reference_tokens` (else `config.flow`'s). What is fixed by the model and the seed is the same in all.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.stages import Member, Stage
from data_pipeline.stream import StreamConfig
from sora_jax.config import build_config
from sora_jax.diffusion.flow import FlowConfig

FIXED = ("patch_size", "reference_latent_rate", "text_features", "seed", "stages")
OF_STAGE = ("start", "path", "mixture", "reference_tokens")


@dataclasses.dataclass(frozen=True)
class _OfStage:
    """What of a stage is no field of `StreamConfig`."""

    path: str
    start: int = 0
    mixture: tuple[Member, ...] = ()
    reference_tokens: int = 0


def data_stages(config: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages of a run, one if the config names none. Raises UserError for a stage that cannot be."""
    plain = [one_stage(config, number) for number in range(num_stages(config))]
    names = [f"config.data.stages[{number}]" for number in range(len(plain))] if len(plain) > 1 else ["config.data"]
    stages = [_stage(one, name) for one, name in zip(plain, names, strict=True)]
    if any(stage.reference_tokens for stage in stages):  # one form of batch in all stages, so that they can be compared
        flow = build_config(FlowConfig, config.get("flow", {}), "config.flow").reference_tokens
        stages = [dataclasses.replace(s, reference_tokens=s.reference_tokens or flow) for s in stages]
    return tuple(stages)


def one_stage(config: Mapping[str, Any], number: int = -1) -> dict[str, Any]:
    """The config as if the run had only this stage, by default its last: what is planned, measured and sampled.

    Raises UserError for a number that there is not, and for a stage that changes what it must not.
    """
    overrides = _overrides(config)
    if not -1 <= number < max(1, len(overrides)):
        raise UserError(f"stage {number} is asked for, but config.data.stages has {len(overrides)}: count from 0")
    data = {name: value for name, value in dict(config.get("data", {})).items() if name != "stages"}
    if not overrides:
        return {**config, "data": data}
    stage = dict(overrides[number])
    if fixed := [name for name in FIXED if name in stage]:
        raise UserError(
            f"config.data.stages[{number}] sets {fixed[0]}, which is the same in all stages: set config.data.{fixed[0]}"
        )
    if "path" in stage:
        data.pop("mixture", None)  # a stage that names a data set is trained on that, unless it names a mixture too
    rows = stage.pop("batch_rows", config["train"]["batch_rows"])
    return {**config, "data": {**data, **stage}, "train": {**config["train"], "batch_rows": rows}}


def num_stages(config: Mapping[str, Any]) -> int:
    """How many stages the run has: one if the config names none."""
    return max(1, len(_overrides(config)))


def stream_config(config: Mapping[str, Any]) -> StreamConfig:
    """The layout of rows from a run's config, of its last stage; the global batch and the seed are the run's own."""
    return _stage(one_stage(config), "config.data").stream


def flow_config(config: Mapping[str, Any]) -> FlowConfig:
    """`config.flow`, with the reference of the last stage: what a trained run is sampled with."""
    flow = build_config(FlowConfig, config.get("flow", {}), "config.flow")
    reference = _stage(one_stage(config), "config.data").reference_tokens
    return dataclasses.replace(flow, reference_tokens=reference) if reference else flow


def capacity_until(config: Mapping[str, Any], steps: Iterable[float]) -> list[float]:
    """How many video tokens all rows of the first `step` steps hold, for each of `steps`."""
    plain = [one_stage(config, number) for number in range(num_stages(config))]
    starts = [one["data"].get("start", 0) for one in plain]
    per_step = [one["train"]["batch_rows"] * one["data"]["row_tokens"] for one in plain]
    parts = list(zip(starts, [*starts[1:], math.inf], per_step, strict=True))
    return [float(sum(max(0, min(step, end) - start) * size for start, end, size in parts)) for step in steps]


def data_path(config: Mapping[str, Any]) -> Path:
    """The data set that a run's autoencoder and tokenizer lie with."""
    return Path(config["data"]["path"])


def _overrides(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    stages = config.get("data", {}).get("stages") or ()
    if not isinstance(stages, list | tuple) or not all(isinstance(stage, Mapping) for stage in stages):
        raise UserError(f"config.data.stages must be a tuple of dict(start=…, …), one for each stage, not {stages!r}")
    return tuple(stages)


def _stage(config: Mapping[str, Any], where: str) -> Stage:
    data = dict(config["data"])
    own = build_config(_OfStage, {name: data.pop(name) for name in OF_STAGE if name in data}, where)
    shared = {"batch_rows": config["train"]["batch_rows"], "seed": config["train"].get("seed", 0)}
    stream = build_config(StreamConfig, {**shared, **data}, where)
    return Stage(own.start, own.mixture or (Member(own.path),), stream, own.reference_tokens)
