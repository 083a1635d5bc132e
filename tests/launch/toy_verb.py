"""The toy task as a program of the launchers: SORA_PROGRAM="python tests/launch/toy_verb.py", used like `sora-jax`.

    train --workdir DIR --steps N [--step_seconds S] [--fail CODE --at STEP]

`--fail` ends the process with that exit code instead of reading batch STEP, once for each workdir. An error of the
user's ends it with its own code, as in `sora-jax`.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOY = Path(__file__).parents[1] / "sora_jax" / "training" / "toy_run.py"
CHECKPOINT_EVERY = 5


def load_toy() -> Any:
    """The module `toy_run.py`."""
    spec = importlib.util.spec_from_file_location("toy_run", TOY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["train"])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--step_seconds", type=float, default=0.0)
    parser.add_argument("--fail", type=int, default=0)
    parser.add_argument("--at", type=int, default=0)
    return parser.parse_args(argv)


def fail_once(workdir: Path, code: int) -> None:
    """Ends the process as a crash would, unless it did before."""
    stamp = workdir.with_name(f"{workdir.name}.failed")
    if code and not stamp.exists():
        stamp.touch()
        os._exit(code)


def main() -> int:
    args, toy = parse(sys.argv[1:]), load_toy()
    from data_pipeline.errors import UserError
    from sora_jax.parallel import process_rows
    from sora_jax.training.distributed import joined
    from sora_jax.training.loop import train

    def batches(start: int, num_steps: int) -> Iterator[dict[str, Any]]:
        first, end = process_rows(toy.ROWS, {})
        for step in range(start, start + num_steps):
            time.sleep(args.step_seconds)
            if step == args.at:
                fail_once(args.workdir, args.fail)
            yield {name: x[first:end] for name, x in toy.batch_at(step).items()}

    try:
        with joined():
            prepared = toy.prepare(
                num_steps=args.steps, checkpoint_every=CHECKPOINT_EVERY, log_every=1, batches=batches
            )
            result = train(prepared, args.workdir)
    except UserError as error:
        print(f"toy_verb: error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result), flush=True)
    return int(result.get("exit_code", 0))


if __name__ == "__main__":
    sys.exit(main())
