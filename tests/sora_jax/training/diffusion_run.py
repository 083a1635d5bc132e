"""A tiny diffusion run on random latents, as one of any number of processes: `diffusion_run.py LATENTS RUN SETTINGS`.

SETTINGS is JSON: `config.train` fields, and `signal_at`, the step whose batch brings process 1 (or 0, if it is alone)
a SIGTERM. The last line says, for each step that was trained, digests of the whole batch, timesteps and noise.
"""

import functools
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.diffusion.flow import FlowConfig
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.layers import initialise
from sora_jax.objectives.diffusion import draw_times_and_noise, prepare
from sora_jax.parallel import make_mesh, put_batch
from sora_jax.training.distributed import barrier, joined
from sora_jax.training.loop import train
from sora_jax.training.step import fold_seed
from sora_jax.types import Prepared
from tests.data_pipeline.conftest import CHANNELS, write_latents

CONFIG: dict[str, Any] = {
    "data": {
        "row_tokens": 320,
        "row_text": 64,
        "row_segments": 6,
        "patch_size": (1, 1, 1),
        "reference_latent_rate": 2.0,
    },
    "model": {
        "width": 24,
        "depth": 2,
        "num_heads": 2,
        "text": {"width": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2},
    },
    "flow": {"reference_tokens": 64},
    "optim": {"learning_rate": 3e-3, "warmup_steps": 4, "ema_decay": 0.9},
    "preview": {"prompts": ("a red ball",), "num_frames": 1, "sampling": {"num_steps": 1, "guidance": 1.0}},
}
TRAIN = {
    "task": "diffusion",
    "batch_rows": 8,
    "log_every": 1,
    "eval_every": 12,
    "eval_batches": 1,
    "checkpoint_every": 6,
}


def write_data(directory: Path) -> Path:
    """Random latents of mixed shapes, beside an autoencoder and a tokenizer."""
    config = AutoencoderConfig(latent_channels=CHANNELS, stages=(Stage(1, 2, 8, 1), Stage(2, 2, 8, 1)))
    params = jax.jit(lambda key: initialise(lambda rngs: VideoAutoencoder(config, rngs), key))(jax.random.key(0))
    codec = Codec(config, params, np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32))
    write_latents(directory, 60, 20, fingerprint=codec.fingerprint)
    codec.save(directory / "autoencoder")
    return directory


def signalling(prepared: Prepared, signal_at: int) -> Prepared:
    """The same batches; the one of step `signal_at` comes with a SIGTERM for one process."""

    def batches(start: int, num_steps: int) -> Iterator[Mapping[str, np.ndarray]]:
        for step, batch in enumerate(prepared.make_batches(start, num_steps), start):
            if step == signal_at and jax.process_index() == min(1, jax.process_count() - 1):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return prepared._replace(make_batches=batches)


def digests(prepared: Prepared, first: int, end: int) -> dict[int, dict[str, str]]:
    """Step -> name -> SHA-256 of the global batch's arrays, of its timesteps and of its noise."""
    mesh = make_mesh(prepared.train.mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    flow = FlowConfig(**CONFIG["flow"])

    @functools.partial(jax.jit, out_shardings=whole)
    def draw(batch: dict[str, jax.Array], step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return draw_times_and_noise(flow, batch, fold_seed(prepared.train.seed, step), np.int32(0))

    found = {}
    for step, rows in enumerate(prepared.make_batches(first, end - first), first):
        batch = put_batch({name: x for name, x in rows.items() if name != "num_unreadable"}, mesh)
        times, noise = draw(batch, np.int32(step))
        arrays = {"times": times, "noise": noise, **batch}
        found[step] = {name: _digest(process_allgather(array, tiled=True)) for name, array in arrays.items()}
    return found


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def main() -> int:
    settings = json.loads(sys.argv[3])
    signal_at = settings.pop("signal_at", -1)
    with joined():
        config = {**CONFIG, "data": {**CONFIG["data"], "path": sys.argv[1]}, "train": {**TRAIN, **settings}}
        prepared = prepare(config)
        result = train(signalling(prepared, signal_at), Path(sys.argv[2]))
        found = digests(prepared, result["resumed_from"], result["step"])
        barrier("digests")
    print(json.dumps({**result, "digests": found}))
    return int(result.get("exit_code", 0))


if __name__ == "__main__":
    sys.exit(main())
