"""From a sweep file to its members, all checked before anything runs.

A sweep file offers `get_sweep()`, which yields dicts of dotted names of config fields and their values, and `BASE`, the
config file that they change (`FILE.py` or `FILE.py:argument`); without `BASE` it has a `get_config()` of its own.
`COMMON`, another such dict, holds for every member; the command line's overrides win over it.

A member's name, and so its folder, follows from its own values alone: members can be added to a sweep file, and its
lines reordered, without touching what has been trained.
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.config import OptimConfig, TrainConfig, build_config

MAX_SLUG_LETTERS = 80

LoadConfig = Callable[[str, Sequence[str]], Any]
"""A config file and its `--config.name=value`s to a `ConfigDict`; `sora_jax.commands.train.load_config` is one."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep. `values` are the swept fields, `overrides` all of `train`'s `--config.name=value`."""

    index: int
    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file as read: its members in the file's order, and each member's whole config by its name.

    `common` are the overrides for all members, the file's and those of the command line.
    """

    file: str
    base: str
    common: tuple[str, ...]
    members: tuple[Member, ...]
    configs: dict[str, dict[str, Any]]


def read_sweep(file: str, given: Sequence[str], load_config: LoadConfig, base: str = "") -> Sweep:
    """The sweep of `file`, with `--config.name=value`s `given` for every member, and `base` in place of its own.

    Raises UserError for a file that fails, a member with a field that does not exist, a value of another type, a value
    that the config's dataclasses refuse, and for two members that are the same run.
    """
    module = _load(file)
    yielded = _call(module, file)
    base = base or _find_base(module, file)
    load_config(base, given)  # what is wrong with these is no member's fault, nor the file's
    common = _find_common(module, file, given, base, load_config)
    members, configs = [], {}
    for index, values in enumerate(yielded):
        try:
            member, config = _make_member(index, values, common, base, load_config)
        except UserError as error:
            raise UserError(f"member {index} of {file} ({values}): {error}") from error
        same = next((m for m in members if configs[m.name] == config), None)
        if same is not None:
            raise UserError(f"members {same.index} and {index} of {file} are the same run ({values}); remove one")
        members.append(member)
        configs[member.name] = config
    if not members:
        raise UserError(f"{file} yields no members; its get_sweep() must yield dicts of overrides")
    return Sweep(file, base, tuple(common), tuple(members), configs)


def member_name(values: Mapping[str, Any]) -> str:
    """`learning_rate=0.001_width=64-1f2e3d4c`: the fields' last names, and a hash of names and values."""
    shared = Counter(name.rpartition(".")[2] for name in values)
    parts = []
    for name, value in sorted(values.items()):
        last = name.rpartition(".")[2]
        parts.append(f"{last if shared[last] == 1 else name}={value}")
    slug = re.sub(r"[^\w.=+-]+", "-", "_".join(parts))[:MAX_SLUG_LETTERS].strip("-") or "base"
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f"{slug}-{digest[:8]}"


def _make_member(
    index: int, values: Any, common: Sequence[str], base: str, load_config: LoadConfig
) -> tuple[Member, dict[str, Any]]:
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise UserError("it is no dict of dotted names such as {'optim.learning_rate': 1e-3}")
    twice = sorted(set(values) & _names(common))
    if twice:
        raise UserError(f"config.{twice[0]} is swept, and set for all members too (COMMON, or on the command line)")
    overrides = (*common, *_as_overrides(values))
    config = load_config(base, overrides).to_dict()
    taken = _check_taken(config, values)
    build_config(OptimConfig, config["optim"], "config.optim")
    train = build_config(TrainConfig, config["train"], "config.train")
    plain = json.loads(json.dumps(config))  # as the run directory keeps it
    return Member(index, member_name(taken), taken, overrides, train.num_steps), plain


def _find_common(module: Any, file: str, given: Sequence[str], base: str, load_config: LoadConfig) -> tuple[str, ...]:
    """`COMMON` as overrides, less what is given anew on the command line, then that."""
    common = getattr(module, "COMMON", {})
    if not isinstance(common, Mapping):
        raise UserError(f"COMMON of {file} is no dict of dotted names such as {{'train.num_steps': 200}}")
    try:
        _check_taken(load_config(base, _as_overrides(common)).to_dict(), common)
    except UserError as error:
        raise UserError(f"COMMON of {file}: {error}") from error
    return (*_as_overrides({name: value for name, value in common.items() if name not in _names(given)}), *given)


def _as_overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"--config.{name}={value}" for name, value in values.items())


def _names(overrides: Sequence[str]) -> set[str]:
    return {word.removeprefix("--config.").split("=", 1)[0] for word in overrides}


def _check_taken(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What the config made of `values`. Raises UserError where that is something else."""
    taken = {name: _field(config, name) for name in values}
    for name, value in values.items():
        if not _is_same(taken[name], value):
            raise UserError(
                f"config.{name} holds a value of type {type(taken[name]).__name__}; {value!r} "
                f"({type(value).__name__}) is none, and would become {taken[name]!r}"
            )
    return taken


def _field(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def _is_same(taken: Any, given: Any) -> bool:
    """Whether the config took a value as it was meant: 1 is as good as 1.0, but True is not 1 and "3" not 3."""
    if isinstance(taken, bool) or isinstance(given, bool):
        return taken is given
    if isinstance(taken, int | float) and isinstance(given, int | float):
        return taken == given
    return json.dumps(taken, sort_keys=True) == json.dumps(given, sort_keys=True)


def _load(file: str) -> Any:
    if not Path(file).is_file():
        raise UserError(f"there is no sweep file {file}; see configs/sweeps/ for what there is")
    spec = importlib.util.spec_from_file_location(f"sweep_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is no Python file; a sweep is FILE.py with a get_sweep()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a sweep file is the user's program: whatever it raises is about the file
        raise UserError(f"the sweep {file} fails: {type(error).__name__}: {error}") from error
    return module


def _call(module: Any, file: str) -> list[Any]:
    if not hasattr(module, "get_sweep"):
        raise UserError(f"{file} has no get_sweep(); it must yield dicts such as {{'optim.learning_rate': 1e-3}}")
    try:
        return list(module.get_sweep())
    except Exception as error:
        raise UserError(f"get_sweep() of {file} fails: {type(error).__name__}: {error}") from error


def _find_base(module: Any, file: str) -> str:
    """`BASE`, looked for here and then in the folders above the sweep file; else the sweep file itself."""
    base = getattr(module, "BASE", None)
    if base is None:
        if not hasattr(module, "get_config"):
            raise UserError(f"{file} says neither BASE (a config file) nor get_config(): there is nothing to sweep")
        return file
    path, colon, argument = str(base).partition(":")
    folders = (Path(), *Path(file).resolve().parents)
    found = next((folder / path for folder in folders if (folder / path).is_file()), None)
    if found is None:
        raise UserError(f"{file} says BASE = {path!r}, which is neither here nor in a folder above the sweep file")
    return f"{found}{colon}{argument}"
