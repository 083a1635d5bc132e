"""A generator's run with random weights: everything that sampling needs, without a step of training."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.generation.api import Generator
from sora_jax.objectives.diffusion import prepare
from sora_jax.training.checkpoint import Checkpoints, Retention, describe_run
from sora_jax.training.step import TrainState
from tests.sora_jax.training.diffusion_run import CONFIG, TRAIN, write_data

STEP = 7


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory; its latents lie beside it, and its previews are 9 frames of 32x32."""
    folder = tmp_path_factory.mktemp("generation")
    latents = write_data(folder / "latents")
    preview = {**CONFIG["preview"], "num_frames": 9, "prompts": ()}
    config = {**CONFIG, "data": {**CONFIG["data"], "path": str(latents)}, "train": dict(TRAIN), "preview": preview}
    prepared = prepare(config)
    # Drawn here and not by `init`: its output and residual branches are zero, so that every sample would be its noise.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape, np.float32)),
        jax.eval_shape(prepared.task.init, jax.random.key(0)),
    )
    ema = jax.tree.map(lambda p: p * 0.9, params)
    state = TrainState(jnp.int32(STEP), params, ema, {}, jnp.int32(0), jnp.int32(0))
    about = describe_run(config, prepared.task.fingerprints)
    with Checkpoints(folder / "run", Retention(1), about) as checkpoints:
        checkpoints.save(state, STEP, {})
    return folder / "run"


@pytest.fixture(scope="session")
def generator(random_run: Path) -> Iterator[Generator]:
    return Generator.from_run(random_run)
