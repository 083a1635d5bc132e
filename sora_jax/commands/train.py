"""`sora-jax train`: train what a config describes, in a run directory; the same command again continues it.

    sora-jax train --config configs/dit_quickstart.py --workdir runs/dit --config.optim.learning_rate=3e-4

Exit codes: 0 finished, 2 a user's error, 75 asked to stop (SIGTERM or Ctrl-C) after saving, 76 a host was lost or hung:
run it again to go on. Several processes train one run (docs/many_hosts.md).
"""

import argparse
import dataclasses
import difflib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from data_pipeline.errors import UserError
from sora_jax.config import OptimConfig, TrainConfig, choose
from sora_jax.training.compile_cache import HELP as COMPILE_CACHE_HELP
from sora_jax.training.compile_cache import use_compile_cache

OBJECTIVES = {
    "autoencoder": "sora_jax.objectives.autoencoder",
    "captioner": "sora_jax.objectives.captioner",
    "diffusion": "sora_jax.objectives.diffusion",
    "expander": "sora_jax.objectives.expander",
}
"""`config.train.task` -> the module whose `prepare(config)` makes the task and its data."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax train`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py",
        help="its get_config() describes the run; --config.name=value sets one field",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="the run directory: made, or continued")
    parser.add_argument("--from_step", type=int, metavar="STEP", help="continue from this checkpoint, not the newest")
    parser.add_argument("--init_from", metavar="RUN[@step]", help="start from this run's parameters and EMA")
    parser.add_argument("--compile_cache", metavar="DIR", help=COMPILE_CACHE_HELP)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, and returns the summary of the run."""
    config = load_config(args.config, args.overrides).to_dict()
    if args.init_from:
        config["train"]["init_from"] = args.init_from
    module_name = choose(OBJECTIVES, config["train"]["task"], "config.train.task")
    from sora_jax.training.distributed import joined  # after the config is known to be good: jax takes a second
    from sora_jax.training.ledger import process_started
    from sora_jax.training.loop import train

    use_compile_cache(args.compile_cache)
    with joined():
        prepared = importlib.import_module(module_name).prepare(config)
        return train(prepared, args.workdir, started=process_started(), from_step=args.from_step)


TRAINING_SECTIONS: Mapping[str, Any] = {"train": TrainConfig(task=""), "optim": OptimConfig()}


def load_config(
    path: str, overrides: Sequence[str] = (), sections: Mapping[str, Any] = TRAINING_SECTIONS
) -> ConfigDict:
    """`get_config()` of the file at `path` (`FILE.py` or `FILE.py:argument`) with `--config.name=value` applied.

    `sections` are dataclass instances with the defaults of what the file leaves out. Raises UserError for a missing
    file, a field that does not exist (naming the nearest), a value of another type.
    """
    config = _call_get_config(path)
    for section, defaults in sections.items():
        # What the file leaves at its default can be set on the command line too, and is kept with the run.
        written = config.get(section, {})
        config[section] = {**dataclasses.asdict(defaults), **written}
    _check_names([override.removeprefix("--config.").split("=", 1)[0] for override in overrides], dict(_leaves(config)))
    values: Any = flags.FlagValues()
    argv = ["sora-jax", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"an override does not fit its field: {error}") from error
    return values["config"].value


def _call_get_config(path: str) -> ConfigDict:
    file, _, argument = path.partition(":")
    if not Path(file).is_file():
        raise UserError(f"there is no config file {file}; see configs/ for what there is")
    # config_flags can read files too, but by a loader method that Python has deprecated.
    spec = importlib.util.spec_from_file_location(f"config_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is no Python file; a config is FILE.py with a get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(argument) if argument else module.get_config()
    except Exception as error:  # a config is the user's program: whatever it raises is about the config
        raise UserError(f"the config {path} fails: {type(error).__name__}: {error}") from error


def _check_names(names: list[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)
            raise UserError(f"the config has no field '{name}'; did you mean {', '.join(f'config.{n}' for n in near)}?")


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield f"{prefix}{name}", value
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
