"""The autoencoder's training step as a plan's subject, without clips.

A config may name several crops, each a program of its own: the one with the most pixels is compiled. LPIPS's weights
need not be there, if the config gives LPIPS a weight; what they and a discriminator compute is compiled, but is none of
the useful FLOPs (`objectives/autoencoder.py` counts the autoencoder's).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax import flops
from sora_jax.config import OptimConfig, TrainConfig, build_config, check_sections
from sora_jax.models.autoencoder import AutoencoderConfig, forward_flops
from sora_jax.models.discriminator import GanConfig
from sora_jax.models.lpips import weight_shapes
from sora_jax.objectives.autoencoder import (
    AutoencoderLossConfig,
    make_evaluate,
    make_groups,
    make_init,
    stream_config,
)
from sora_jax.planning.subjects import Subject
from sora_jax.types import Task


def autoencoder_subject(config: Mapping[str, Any]) -> Subject:
    """The largest step of an autoencoder's config. Raises UserError for a config that `train` would refuse."""
    check_sections(config, required=("data", "optim", "train"), optional=("model", "loss", "gan"))
    model = build_config(AutoencoderConfig, config.get("model", {}), "config.model")
    loss = build_config(AutoencoderLossConfig, config.get("loss", {}), "config.loss")
    gan = build_config(GanConfig, config.get("gan", {}), "config.gan")
    optim = build_config(OptimConfig, config["optim"], "config.optim")
    train = build_config(TrainConfig, config["train"], "config.train")
    crops = stream_config(config).crops
    crop = max(crops, key=math.prod)
    model.latent_shape(*crop)
    shapes = weight_shapes(loss.lpips_net) if loss.lpips_weights else {}
    frozen = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    pixels = train.batch_rows * math.prod(crop)
    useful = float(flops.TRAINING * train.batch_rows * forward_flops(model, *crop))
    return Subject(
        task=Task(
            name="autoencoder",
            init=make_init(model, gan),
            groups=make_groups(model, loss, gan, optim),
            evaluate=make_evaluate(model, loss),
            flops=lambda batch: useful,
            frozen={"lpips": frozen} if frozen else {},
        ),
        train=train,
        model=model,
        batch={"video": jax.ShapeDtypeStruct((train.batch_rows, *crop, 3), jnp.uint8)},
        tokens=pixels,
        useful_flops=useful,
        recomputed_flops=0.0,
        mix=f"crops of {crop[0]} frames of {crop[2]}x{crop[1]}, the largest of {len(crops)}; "
        "without the FLOPs of LPIPS and the discriminator",
        unit="pixels",
    )
