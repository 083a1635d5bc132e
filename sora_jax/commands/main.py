"""The command-line program: `sora-jax VERB …`.

One verb a job, one module a verb. A verb's module offers two functions:

- `add_arguments(parser)` declares its options on an `argparse.ArgumentParser`;
- `run(args) -> dict` does the work and returns what the last line of stdout says, as JSON. An `exit_code` in it
  becomes the exit code of the process (a preempted training run has one of its own).

This module stays light: it imports a verb's module only when that verb is asked for, so `sora-jax data` runs on a
machine without an accelerator stack. Logs and progress go to stderr.
"""

import argparse
import importlib
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging as absl_logging

from data_pipeline.errors import EXIT_SYSTEM_ERROR, UserError
from sora_jax.commands.shared import plain
from sora_jax.training.compile_cache import use_compile_cache

# A loader's worker process re-imports the main script as `__mp_main__`, and needs no jax: blocking that import there
# saves each worker 140 MiB and a second (Grain imports jax where it finds it). In the parent the two are one module.
if sys.modules.get("__mp_main__", sys.modules["__main__"]) is not sys.modules["__main__"]:
    sys.modules.setdefault("jax", None)  # type: ignore[arg-type]
    # Grain warns of that, once a worker.
    absl_logging.get_absl_logger().addFilter(lambda record: "jax profiler" not in record.getMessage())

VERBS = {
    "data": "make or look at data sets: synth (render a world), build (videos to shards), …",
    "train": "train what a config describes: an autoencoder or a diffusion transformer",
    "checkpoint": "a run's checkpoints: list, verify, prune, export to safetensors, import; published autoencoders",
    "sweep": "train one config with a few fields changed, many times: run, status, table, plot",
    "recaption": "one more caption for every clip, from a trained captioner or a vision-language server",
    "encode": "clip shards to latent shards, with a trained autoencoder",
    "sample": "text to video or image files, from a trained run",
    "evaluate": "FID and FVD by named protocols, exact probes of samples, an autoencoder's reconstructions",
    "goodput": "where the wall time of a run went, over all its starts",
    "report": "one self-contained HTML page of a run",
    "plan": "what a run will need and cost, compiled for hardware that is not there",
    "bench": "measure the loop, the loader and the model",
}

EXIT_INTERRUPTED = 130

OVERRIDE_PREFIX = "--config."

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code of the process: 0, 2 for a user's error, 3 for the system's (a full disk,
    a shared file system that fails); `train` has more."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname).1s %(name)s: %(message)s")
    _set_log_level(logging.INFO)
    try:
        args = parse_arguments(argv)
        if "jax" in sys.modules:  # a verb that imports it later sees to this then
            use_compile_cache(getattr(args, "compile_cache", None))
        result = args.execute(args)
    except UserError as error:
        return _fail(f"error: {error}", error.exit_code)
    except OSError as error:  # a full disk, a missing right: the system's words name the file
        logger.debug("where it happened", exc_info=True)
        return _fail(f"error: {error}", EXIT_SYSTEM_ERROR)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    print(json.dumps(plain(result), default=_to_json), flush=True)
    return int(result.get("exit_code", 0))


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parses `argv`; `args.execute` is the verb's `run`, `args.overrides` the list of `--config.name=value` as given.

    Only the module of the verb in question is imported. Raises SystemExit as argparse does.
    """
    parser = argparse.ArgumentParser(prog="sora-jax", description="Video generators in JAX, from raw videos on.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log details, with the place of a system error")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = next((word for word in argv if not word.startswith("-")), None)
    takes_config = False
    for name, summary in VERBS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name != verb:
            continue
        module = importlib.import_module(f"sora_jax.commands.{name}")
        module.add_arguments(subparser)
        subparser.set_defaults(execute=module.run)  # not `run`: verbs have a --run of their own
        takes_config = _takes_config(subparser)
    overrides = _check_overrides([word for word in argv if takes_config and word.startswith(OVERRIDE_PREFIX)])
    args = parser.parse_args([word for word in argv if word not in overrides])
    args.overrides = overrides
    _check_paths(args)
    if args.verbose:
        _set_log_level(logging.DEBUG)
    return args


def _set_log_level(level: int) -> None:
    """Of our own packages: others' warnings are enough."""
    for package in ("sora_jax", "data_pipeline"):
        logging.getLogger(package).setLevel(level)


def _has_option(parser: argparse.ArgumentParser, option: str) -> bool:
    """Whether `parser`, or a verb within it (`bench loop`), declares `option`."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return option in parser._option_string_actions or any(
        _has_option(child, option) for action in inner for child in action.choices.values()
    )


def _takes_config(parser: argparse.ArgumentParser) -> bool:
    """Whether the verb, or one of its sub-verbs, has `--config`."""
    nested = (p for action in parser._actions if isinstance(action.choices, dict) for p in action.choices.values())
    return any("--config" in action.option_strings for action in parser._actions) or any(map(_takes_config, nested))


def _check_overrides(overrides: list[str]) -> list[str]:
    """Refuses an override without a value: `--config.seed 3` would leave the 3 to be read as something else."""
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r} has no value: write it as {override}=VALUE")
    return overrides


def _check_paths(args: argparse.Namespace) -> None:
    """Refuses `gs://bucket/run`, which as a path would be a new folder `gs:` here."""
    given = [
        (name, one) for name, value in vars(args).items() for one in (value if isinstance(value, list) else [value])
    ]
    for name, value in given:
        if isinstance(value, Path) and (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(value))):
            raise UserError(
                f"--{name} is {value}, but '{scheme[0]}/…' is no path of a file system; mount the bucket (gcsfuse, "
                "mountpoint-s3, a PersistentVolume) and name the folder"
            )


def _fail(message: str, code: int) -> int:
    print(f"sora-jax: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _to_json(value: object) -> object:
    """Paths and numpy scalars, which verbs return naturally."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)


if __name__ == "__main__":
    sys.exit(main())
