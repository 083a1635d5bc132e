"""The adversarial part of the autoencoder's objective: what the decoder gains by fooling a discriminator, and what the
discriminator learns from real clips and their reconstructions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from sora_jax.models.autoencoder import AutoencoderConfig
from sora_jax.models.codec import apply
from sora_jax.models.discriminator import Discriminator, GanConfig, adaptive_weight, hinge, r1, rows_mean
from sora_jax.models.layers import definition

Score = Callable[[Float[Array, "B T Y X 3"]], Float[Array, "B F H W"]]


def score_of(cfg: GanConfig, params: dict[str, Any]) -> Score:
    """The discriminator with these parameters."""
    return nnx.merge(_definition(cfg), params)


@functools.cache
def _definition(cfg: GanConfig) -> Any:
    return definition(lambda rngs: Discriminator(cfg, rngs))


def generator_loss(
    model: AutoencoderConfig,
    cfg: GanConfig,
    params: dict[str, Any],
    latents: Float[Array, "B F H W C"],
    decoded: Float[Array, "B T Y X 3"],
    reconstruction: Callable[[Float[Array, "B T Y X 3"]], Float[Array, " B"]],
    step: Int[Array, ""],
) -> tuple[Float[Array, " B"], Float[Array, ""]]:
    """-D(x̂) of each clip times cfg.weight x λ, 0 before `cfg.start_step`; and λ, the adaptive weight.

    `reconstruction(x̂)` is each clip's reconstruction loss, whose gradient λ weighs against that of -D(x̂).
    """
    score = score_of(cfg, jax.lax.stop_gradient(params["discriminator"]))
    frozen, still, end = jax.lax.stop_gradient((params["autoencoder"], latents, decoded))
    up = frozen["decoder"]["up"]

    def decode(kernel: Float[Array, "D E"]) -> Float[Array, "B T Y X 3"]:
        last = {**up, "stage_0": {**up["stage_0"], "kernel": kernel}}
        network = apply(model, {**frozen, "decoder": {**frozen["decoder"], "up": last}})
        return network.decode(still, [])[0]

    _, pull = jax.vjp(decode, up["stage_0"]["kernel"])
    losses = (reconstruction, lambda x: -rows_mean(score(x)))
    weight = adaptive_weight(*(pull(jax.grad(lambda x, f=f: f(x).sum())(end))[0] for f in losses))
    started = (step >= cfg.start_step).astype(jnp.float32)
    return -rows_mean(score(decoded)) * started * cfg.weight * weight, weight


def discriminator_loss(
    cfg: GanConfig,
    params: dict[str, Any],
    decoded: Float[Array, "B T Y X 3"],
    video: Float[Array, "B T Y X 3"],
    step: Int[Array, ""],
) -> tuple[Float[Array, " B"], dict[str, Float[Array, " B"]]]:
    """hinge + r1_weight / 2 x R1 of each clip, 0 before `cfg.start_step`; and what to log of each clip."""
    score = score_of(cfg, params)
    real, fake = score(video), score(jax.lax.stop_gradient(decoded))
    loss = hinge(real, fake)
    logged = {"gan_real": rows_mean(real), "gan_fake": rows_mean(fake), "gan_hinge": loss}
    if cfg.r1_weight:
        logged["gan_r1"] = r1(score, video)
        loss = loss + 0.5 * cfg.r1_weight * logged["gan_r1"]
    return loss * (step >= cfg.start_step).astype(jnp.float32), logged
