"""A run's config for a report's page: where it differs from the defaults in the code, and from other runs'."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import empty_node, flatten_dict

from data_pipeline.caption_stream import CaptionStreamConfig
from data_pipeline.clip_stream import ClipStreamConfig
from data_pipeline.errors import UserError
from data_pipeline.stream import StreamConfig
from sora_jax.config import OptimConfig, TrainConfig
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.generation import PreviewConfig
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.captioner import CaptionerConfig
from sora_jax.models.discriminator import GanConfig
from sora_jax.models.dit import SIZES, DitConfig
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.objectives.autoencoder import AutoencoderLossConfig, StartConfig
from sora_jax.objectives.captioner import CaptionerLossConfig
from sora_jax.training.run_directory import CONFIG, RUN

SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "diffusion": {"data": StreamConfig, "flow": FlowConfig, "model": DitConfig, "preview": PreviewConfig},
    "autoencoder": {
        "data": ClipStreamConfig,
        "gan": GanConfig,
        "loss": AutoencoderLossConfig,
        "model": AutoencoderConfig,
        "start": StartConfig,
    },
    "captioner": {"data": CaptionStreamConfig, "loss": CaptionerLossConfig, "model": CaptionerConfig},
}
"""Task -> section of its config -> the dataclass with the defaults; `optim` and `train` are every task's."""
NO_DEFAULT = ABSENT = "–"
TELLING = ("model.size", "model.width", "train.num_steps", "optim.learning_rate", "train.seed")
"""Fields that tell runs apart better than others do."""
MOST_SHOWN = 160
MOST_LETTERS = 24
"""A folder's name up to so long is a run's name as it is."""


class Field(NamedTuple):
    """One line of a table: a field and its value in the defaults and this run, or in several runs."""

    name: str
    values: list[str]


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file. Raises UserError for what is not there or is none."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: run the verb that writes it first") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): run the verb that writes it again") from error


def read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json` and `run.json`. Raises UserError for what is no run."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is no run, it has no {CONFIG}: name the --workdir of a training run")
    return read_json(run / CONFIG), read_json(run / RUN)


def task_of(config: Mapping[str, Any]) -> str:
    """What a run trains; a config of an older form may not say."""
    return config.get("train", {}).get("task", "unknown")


def defaults_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted field -> the default of the code, of the fields that have one; `model.size` brings its own."""
    found: dict[str, Any] = {}
    sections = {**SECTIONS.get(task_of(config), {}), "optim": OptimConfig, "train": TrainConfig}
    if "text" in config.get("model", {}):
        sections["model.text"] = TextEncoderConfig
    for section, described in sections.items():
        for field in dataclasses.fields(described):
            if field.default is not dataclasses.MISSING:
                found[f"{section}.{field.name}"] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                found[f"{section}.{field.name}"] = field.default_factory()
    if size := config.get("model", {}).get("size"):
        found |= {f"model.{name}": value for name, value in SIZES[size].items()}
    return flat({name: _plain(value) for name, value in found.items()})


def differences(config: Mapping[str, Any]) -> list[Field]:
    """Every field of a run that is not at its default: (default, this run)."""
    default = defaults_of(config)
    rows = [
        Field(name, [_text(default[name]) if name in default else NO_DEFAULT, _text(value)])
        for name, value in sorted(flat(config).items())
        if name not in default or default[name] != value
    ]
    return sorted(rows, key=lambda row: row.values[0] == NO_DEFAULT)


def differing(configs: Sequence[Mapping[str, Any]]) -> list[Field]:
    """The fields in which several runs differ, with each run's value; a field left out is at its default."""
    full = [{**defaults_of(config), **flat(config)} for config in configs]
    names = sorted({name for one in full for name in one})
    rows = [(name, [one.get(name, ABSENT) for one in full]) for name in names]
    return [Field(name, [_text(v) for v in values]) for name, values in rows if any(v != values[0] for v in values)]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections as dotted names, values as JSON has them; an empty section is {}."""
    leaves = flatten_dict(json.loads(json.dumps(config)), keep_empty_nodes=True, sep=".")
    return {name: {} if value is empty_node else value for name, value in leaves.items()}


def short_names(runs: Sequence[Path], fields: Sequence[Field]) -> list[str]:
    """What tells the runs apart on the page: short folders' names, else as few differing fields as will do."""
    names = [run.resolve().name for run in runs]
    if len(set(names)) == len(runs) and max(map(len, names)) <= MOST_LETTERS:
        return names
    parents = [run.resolve().parent.name for run in runs]
    if len(set(parents)) == len(runs) and max(map(len, parents)) <= MOST_LETTERS:
        return parents
    usable = [f for f in fields if not f.name.endswith("path") and max(map(len, f.values)) <= MOST_LETTERS]
    usable.sort(key=lambda f: (-len(set(f.values)), f.name not in TELLING, not f.name.startswith("model.")))
    chosen: list[Field] = []
    parts = 1
    for field in usable:
        told_apart = len(set(zip(*(f.values for f in (*chosen, field)), strict=True)))
        if told_apart > parts:
            chosen, parts = [*chosen, field], told_apart
        if parts == len(runs):
            labels = [[f"{f.name.rpartition('.')[2]} {f.values[i]}" for f in chosen] for i in range(len(runs))]
            return [", ".join(label) for label in labels]
    return [f"{i + 1}: {name[:MOST_LETTERS]}" for i, name in enumerate(names)]


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, wherever they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
