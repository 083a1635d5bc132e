"""The codec that an autoencoder's run has come to, whether it was exported yet or not."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.errors import UserError
from sora_jax.config import build_config
from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.codec import Codec, load_codec
from sora_jax.training.checkpoint import CHECKPOINTS, load_params


def is_run(path: Path) -> bool:
    """Whether `path` is a run's folder, and no export's."""
    return (path / CHECKPOINTS).exists()


def newest_codec(run: Path) -> tuple[Codec, int]:
    """The EMA of the run's newest checkpoint with latents as they are (mean 0, deviation 1), and the step.

    Raises UserError for a run of something else, or without a good checkpoint.
    """
    loaded = load_params(run)
    if "autoencoder" not in loaded.params:
        raise UserError(f"{run} is no autoencoder's run: it trained {', '.join(loaded.params)}")
    config = build_config(AutoencoderConfig, loaded.config.get("model", {}), "config.model")
    zeros = np.zeros(config.latent_channels, np.float32)
    return Codec(config, jax.tree.map(jnp.asarray, loaded.params["autoencoder"]), zeros, zeros + 1), loaded.step


def codec_to_measure(path: Path) -> Codec:
    """What reconstructs as `path` does now: an export, or a run's newest checkpoint, which its export may be older
    than. Reconstruction does not read the latents' statistics."""
    return newest_codec(path)[0] if is_run(path) else load_codec(path)
