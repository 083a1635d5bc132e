"""What made a run, beside its results: `config.json`, `run.json` (id, fingerprints, code, environment) and
`uncommitted.patch`, where the code was not what its commit says.

The same command run again continues the run, so the folder refuses another config, except for fields that only say
how long, how often or on what the run goes.
"""

import dataclasses
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error
from sora_jax.config import OptimConfig, TrainConfig
from sora_jax.training.provenance import uncommitted_changes

CONFIG, RUN, PATCH = "config.json", "run.json", "uncommitted.patch"

EXTENDABLE = frozenset(
    ["num_steps", "log_every", "eval_every", "eval_batches", "preview_every", "checkpoint_every", "keep_last"]
    + ["keep_every", "keep_best", "fast_dir", "durable_every", "restore_check"]
    + ["max_nonfinite_steps", "num_workers", "hang_timeout_s", "trace_steps", "wandb_project", "mesh", "microbatches"]
    + ["spike_sigma", "rollback_after", "rollback_skip", "max_rollbacks", "xla"]
)
"""Fields of `config.train` that may change within a run; `mesh` and `microbatches` change only the rounding, and a run
that spikes must be given its limits while it lasts."""


PATHS = re.compile(r"model\.text_encoder\.path|data\.(stages\.\d+\.)?(mixture\.\d+\.)?path")


def open_run(workdir: Path, description: Mapping[str, Any], has_checkpoint: bool) -> None:
    """Makes `workdir` the folder of the run that `description` (of `describe_run`) describes, or finds that it is.

    Raises UserError when the folder belongs to another run, naming the fields with both values. A run that saved
    nothing yet has nothing to lose: a corrected config replaces it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        known = _read(workdir / CONFIG)
        if known is not None and has_checkpoint:
            check_config(known, description["config"], workdir)
        made_of = _read(workdir / RUN)
        if made_of is not None and has_checkpoint:
            _check_fingerprints(made_of.get("fingerprints", {}), description["fingerprints"], workdir)
        _write(workdir / CONFIG, description["config"])
        identity = (made_of or {}).get("id") or uuid.uuid4().hex[:12]  # it names the run on storage that runs share
        described = {name: value for name, value in description.items() if name != "config"}
        _write(workdir / RUN, {"id": identity, **described})
        if "environment" in description:  # a run that is trained here, not one that was imported
            _write_patch(workdir / PATCH, uncommitted_changes())
    except OSError as error:
        raise from_os_error(error, f"opening the run {workdir}") from error


def check_config(known: Mapping[str, Any], given: Mapping[str, Any], where: Path) -> None:
    """Raises UserError if two configs differ in more than extendable fields."""
    old, new = ({**_defaults(), **dict(_flatten(json.loads(json.dumps(config))))} for config in (known, given))
    differing = [
        f"config.{name} was {old.get(name, 'absent')!r} and is {new.get(name, 'absent')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ...) != new.get(name, ...) and not _is_extendable(name)
    ]
    if differing:
        raise UserError(
            f"{where} holds a run of another config: {'; '.join(differing)}; give these fields their old values, "
            "or choose another --workdir (with --init_from to start from this run's parameters)"
        )


def _defaults() -> dict[str, Any]:
    """What a config that does not name a field means: an older run may lack fields that were added since."""
    sections = {"train": dataclasses.asdict(TrainConfig(task="")), "optim": dataclasses.asdict(OptimConfig())}
    return dict(_flatten(sections))


def _is_extendable(name: str) -> bool:
    if PATHS.fullmatch(name):  # these may move; their fingerprints may not change
        return True
    parts = name.split(".")
    if parts[0] == "preview":  # pictures for people: they change nothing of the run
        return True
    return len(parts) > 1 and parts[0] == "train" and parts[1] in EXTENDABLE


def _check_fingerprints(known: Mapping[str, str], given: Mapping[str, str], where: Path) -> None:
    differing = [f"{n} was {known[n]} and is {given[n]}" for n in sorted(known) if n in given and known[n] != given[n]]
    if differing:
        raise UserError(
            f"the run in {where} was made of other things: {'; '.join(differing)}; point the config at what the run "
            "was started with, or choose another --workdir"
        )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, list | tuple) and value and all(isinstance(part, Mapping) for part in value):
            value = {str(number): part for number, part in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); restore it, or choose another --workdir") from error


def _write_patch(path: Path, patch: bytes) -> None:
    if patch:
        _write_whole(path, patch)
    else:
        path.unlink(missing_ok=True)  # of an earlier start


def _write(path: Path, value: Mapping[str, Any]) -> None:
    _write_whole(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk
