"""A task small enough to train in seconds, and a script that trains it: `python toy_run.py WORKDIR NUM_STEPS`.

Three stacked tanh layers and a head learn two of eight inputs from noisy rows. The noise of the loss is drawn from
the step's key and the global row, as the real objectives draw theirs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config import OptimConfig, TrainConfig
from sora_jax.parallel import process_rows
from sora_jax.types import LossOutput, ParamGroup, Prepared, Task

ROWS, WIDTH, LAYERS = 16, 8, 3


def init(key: jax.Array) -> dict[str, Any]:
    blocks, head = jax.random.split(key)
    return {
        "net": {
            "blocks": {
                "kernel": jax.random.normal(blocks, (LAYERS, WIDTH, WIDTH)) / 3,
                "bias": jnp.zeros((LAYERS, WIDTH)),
            },
            "head": {"kernel": jax.random.normal(head, (WIDTH, 2)) / 3},
        }
    }


def predict(net: dict[str, Any], x: jax.Array) -> jax.Array:
    x, _ = jax.lax.scan(lambda x, p: (x + jnp.tanh(x @ p["kernel"] + p["bias"]), None), x, net["blocks"])
    return x @ net["head"]["kernel"]


def loss(params: Any, frozen: Any, batch: Any, key: jax.Array, row_offset: jax.Array) -> LossOutput:
    rows = row_offset + jnp.arange(batch["x"].shape[0])
    noise = jax.vmap(lambda r: jax.random.normal(jax.random.fold_in(key, r), (WIDTH,)))(rows)
    error = ((predict(params["net"], batch["x"] + 0.1 * noise) - batch["y"]) ** 2).sum(-1) * batch["weight"]
    total, weight = error.sum(), batch["weight"].sum()
    return LossOutput(total, weight, {"noise": (noise.sum(), jnp.float32(noise.size))})


def evaluate(params: Any, frozen: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
    output = loss(params, frozen, batch, key, jnp.int32(0))
    return {"loss": (output.total, output.weight)}


def batch_at(step: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    return {"x": x, "y": x[:, :2] * x[:, 2:4], "weight": rng.uniform(0.5, 1.5, rows).astype(np.float32)}


def make_batches(start: int, num_steps: int) -> Iterator[dict[str, np.ndarray]]:
    for step in range(start, start + num_steps):
        yield batch_at(step)


def prepare(
    optim: dict[str, Any] | None = None,
    batches: Callable[[int, int], Iterator[dict[str, np.ndarray]]] = make_batches,
    fingerprints: dict[str, str] | None = None,
    **train: Any,
) -> Prepared:
    """The toy with other settings: `optim` fields in a dict, `config.train` fields by name."""
    settings = {"task": "toy", "num_steps": 12, "log_every": 4, "eval_every": 6, "checkpoint_every": 4, **train}
    optim_settings = {"learning_rate": 1e-2, "warmup_steps": 3, "ema_decay": 0.9, "weight_decay": 0.01, **(optim or {})}
    task = Task(
        name="toy",
        init=init,
        groups=(ParamGroup("net", loss, OptimConfig(**optim_settings)),),
        evaluate=evaluate,
        flops=lambda batch: 6.0 * batch["x"].shape[0] * (LAYERS * WIDTH * WIDTH + 2 * WIDTH),
        fingerprints=fingerprints or {"data": "toy"},
    )
    first, end = process_rows(ROWS, settings.get("mesh", {}))
    held_out = lambda _: ({k: x[first:end] for k, x in batch_at(10_000 + i).items()} for i in range(2))  # noqa: E731
    return Prepared(task, TrainConfig(**settings), batches, held_out, {"train": settings, "optim": optim_settings})


def launch(run_dir: Path, num_steps: int, step_seconds: float = 0.0, **train: Any) -> subprocess.Popen:
    """This script in a process of its own, on one device; `train` are fields of `config.train`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3]), "XLA_FLAGS": ""}
    environment |= {"TOY_STEP_SECONDS": str(step_seconds), "TOY_TRAIN": json.dumps(train)}
    command = [sys.executable, __file__, str(run_dir), str(num_steps)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def main() -> int:
    from sora_jax.training.distributed import joined
    from sora_jax.training.ledger import process_started
    from sora_jax.training.loop import train

    changed = json.loads(os.environ.get("TOY_TRAIN", "{}"))
    trouble = json.loads(os.environ.get("TOY_TROUBLE", "{}"))
    delay_s = float(os.environ.get("TOY_STEP_SECONDS", "0"))
    if ahead_s := float(os.environ.get("TOY_CLOCK_AHEAD_S", "0")):
        clock = time.time
        time.time = lambda: clock() + ahead_s

    def slow_batches(start: int, num_steps: int) -> Iterator[dict[str, np.ndarray]]:
        first, end = process_rows(ROWS, changed.get("mesh", {}))
        for number, batch in enumerate(make_batches(start, num_steps), start):
            time.sleep(delay_s)
            if number == trouble.get("step") and jax.process_index() == trouble["process"]:
                time.sleep(trouble["sleep_s"])
                raise RuntimeError("the loader's disk is gone")
            if number in trouble.get("spikes", ()):
                batch["y"] = batch["y"] * np.nan
            yield {name: x[first:end] for name, x in batch.items()}

    with joined():
        settings = {
            "num_steps": int(sys.argv[2]),
            "checkpoint_every": 5,
            **json.loads(os.environ.get("TOY_TRAIN", "{}")),
        }
        result = train(prepare(batches=slow_batches, **settings), Path(sys.argv[1]), started=process_started())
    print(json.dumps(result))
    return int(result.get("exit_code", 0))


if __name__ == "__main__":
    sys.exit(main())
