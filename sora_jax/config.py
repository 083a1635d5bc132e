"""Strict configs: a `ConfigDict` of plain values in, frozen dataclasses out; a typo is an error.

Components declare their own frozen dataclass and never see the whole config.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from data_pipeline.errors import UserError

T = TypeVar("T")

RESTORE_CHECKS = ("sha256", "size")
MOMENT_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimizer, its schedule and the average of its parameters.

    `learning_rate` is the peak, reached after `warmup_steps`; `schedule` ends at `final_fraction` of it.
    `clip_norm` bounds the global norm of the gradient. `ema_decay` is the EMA's decay for each step. `moment_dtype`
    "bfloat16" halves the bytes of the first moment (Adam's mean, Muon's momentum); the second stays in float32, since a
    step moves it by less than bfloat16 can tell (1 - b2 against 1/256).
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 100
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    muon_momentum: float = 0.95
    moment_dtype: str = "float32"

    def __post_init__(self) -> None:
        at_least(self, "config.optim", 0, "learning_rate", "warmup_steps", "final_fraction", "eps", "weight_decay")
        below_one(self, "config.optim", "b1", "b2", "ema_decay", "muon_momentum")
        choose(dict.fromkeys(MOMENT_DTYPES), self.moment_dtype, "config.optim.moment_dtype")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how often, and on which mesh. `batch_rows` is the global batch; the mesh never changes it.

    A step whose loss or gradient norm is more than `spike_sigma` deviations above the recent ones is not applied (0: no
    limit). When `rollback_after` of the last twice as many steps were not applied (0: never), the run goes back to the
    newest checkpoint before them and leaves out at least `rollback_skip` batches, `max_rollbacks` times in all.

    A run whose steps stop for `hang_timeout_s` (or ten of its longest recent steps, if that is longer) ends with exit
    code 76 and its stacks; 0 never does. SIGUSR1 traces the next `trace_steps` steps.
    With `wandb_project` the metrics go to Weights & Biases too.

    Of the checkpoints, the `keep_last` newest are kept, each multiple of `keep_every` (0: none), and the best by the
    held-out metric `keep_best` ("": none; "psnr:max" for one that should be large). With `fast_dir`, every save goes to
    that storage, and one of each `durable_every` steps (0: each save) is copied to the run directory behind it.
    `xla` overrides the compiler's options of `training/xla_options.py`, one by one ("" takes one out).
    `restore_check` compares the files of a checkpoint with what was written by "sha256", or by "size" alone.
    """

    task: str
    seed: int = 0
    num_steps: int = 1000
    batch_rows: int = 16
    microbatches: int = 1
    log_every: int = 10
    eval_every: int = 500
    eval_batches: int = 4
    preview_every: int = 0
    checkpoint_every: int = 200
    keep_last: int = 2
    keep_every: int = 0
    keep_best: str = ""
    fast_dir: str = ""
    durable_every: int = 0
    restore_check: str = "sha256"
    max_nonfinite_steps: int = 20
    spike_sigma: float = 0.0
    rollback_after: int = 10
    rollback_skip: int = 200
    max_rollbacks: int = 10
    num_workers: int = 0
    hang_timeout_s: float = 45.0
    trace_steps: int = 5
    wandb_project: str = ""
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    xla: dict[str, str] = dataclasses.field(default_factory=dict)
    init_from: str = ""

    def __post_init__(self) -> None:
        at_least(self, "config.train", 1, "num_steps", "batch_rows", "microbatches", "log_every", "keep_last")
        at_least(self, "config.train", 1, "trace_steps")
        at_least(self, "config.train", 0, "eval_every", "eval_batches", "preview_every", "checkpoint_every")
        at_least(self, "config.train", 0, "spike_sigma", "rollback_after", "rollback_skip", "max_rollbacks")
        at_least(self, "config.train", 0, "num_workers", "max_nonfinite_steps", "seed", "hang_timeout_s")
        at_least(self, "config.train", 0, "keep_every", "durable_every")
        choose(dict.fromkeys(RESTORE_CHECKS), self.restore_check, "config.train.restore_check")
        if self.keep_best and not (self.eval_every and self.eval_batches):
            raise UserError(
                f"config.train.keep_best is '{self.keep_best}', but nothing is evaluated: eval_every is "
                f"{self.eval_every} and eval_batches {self.eval_batches}; both must be at least 1"
            )


def build_config(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """`values` as the dataclass `cls`. `where` is the config path that errors name, such as `config.optim`.

    Raises UserError for an unknown field (naming the nearest), a missing one, or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=3) or sorted(fields)
            raise UserError(f"{where} has no field '{name}'; did you mean {', '.join(near)}?")
    hints = typing.get_type_hints(cls)
    built = {n: _convert(hints[n], v, f"{where}.{n}") for n, v in values.items()}
    missing = [n for n, f in fields.items() if n not in built and _is_required(f)]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; set them in the config file")
    return cls(**built)


def build_data(cls: type[T], config: Mapping[str, Any]) -> T:
    """`config.data` without its path as `cls`; the global batch and the seed are the run's own."""
    data = {name: value for name, value in dict(config["data"]).items() if name != "path"}
    shared = {"batch_size": config["train"]["batch_rows"], "seed": config["train"].get("seed", 0)}
    return build_config(cls, {**shared, **data}, "config.data")


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and not isinstance(value, hint):  # type: ignore[arg-type]
        names = ", ".join(f.name for f in dataclasses.fields(hint))
        _expect(isinstance(value, Mapping), f"a mapping with {names}", value, where)
        return build_config(hint, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        if value is None or any(dataclasses.is_dataclass(a) and isinstance(value, a) for a in typing.get_args(hint)):
            return value
        return _convert(next(a for a in typing.get_args(hint) if a is not type(None)), value, where)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, where)
    if origin is dict or hint is dict:
        _expect(isinstance(value, Mapping), "a mapping", value, where)
        args = typing.get_args(hint)
        return {k: _convert(args[1], v, f"{where}.{k}") if args else v for k, v in value.items()}
    if hint is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, where)
        return float(value)
    if hint in (int, str, bool):
        _expect(isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), hint.__name__, value, where)
    return value


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, (list, tuple)), "a tuple", value, where)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    _expect(len(value) == len(args), f"a tuple of {len(args)}", value, where)
    return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _expect(ok: bool, what: str, value: Any, where: str) -> None:
    if not ok:
        raise UserError(f"{where} must be {what}, not {value!r}")


def at_least(config: Any, where: str, least: int, *names: str) -> None:
    """Raises UserError for a field of `config` below `least`."""
    for name in names:
        if not least <= getattr(config, name) < math.inf:
            raise UserError(f"{where}.{name} is {getattr(config, name)}, but must be at least {least}, and finite")


def below_one(config: Any, where: str, *names: str) -> None:
    """Raises UserError for a field of `config` that is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{where}.{name} is {getattr(config, name)}, but must be at least 0 and below 1")


def check_sections(config: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Raises UserError for a config that lacks a section, or has one that its task does not read."""
    missing = [name for name in required if name not in config]
    if missing:
        raise UserError(f"the config lacks {', '.join(f'config.{name}' for name in missing)}")
    for name in config:
        if name not in required + optional:
            known = required + optional
            near = difflib.get_close_matches(str(name), known, n=3) or sorted(known)
            raise UserError(
                f"the config has a section '{name}' that its task does not know; did you mean {', '.join(near)}?"
            )
    if not isinstance(config["data"], Mapping) or "path" not in config["data"]:
        raise UserError("the config lacks config.data.path; set it with --config.data.path=DIR")


def choose(choices: Mapping[str, T], name: str, where: str) -> T:
    """The entry of a small closed dict. Raises UserError listing the valid names."""
    if name not in choices:
        raise UserError(f"{where} is '{name}', which is none of {', '.join(sorted(choices))}")
    return choices[name]
