"""Rectified flow (Liu et al. 2022; Lipman et al. 2022): the one time convention of the project.

    x_t = (1 - t) x_0 + t ε,    v = dx_t/dt = ε - x_0,    t = 0 is data, t = 1 is noise.

A network may predict the velocity, x_0 or ε; the three determine each other through x_t and t, and are converted
here and nowhere else. Times are drawn from a logit-normal distribution and shifted towards noise for samples with
more tokens (Esser et al. 2024, sections 3.1 and 5.3.2).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from data_pipeline.errors import UserError

PREDICTIONS = ("velocity", "x_0", "noise")
MIN_TIME = 0.05
"""x_0 and ε determine the velocity through a division by t or 1 - t, which is held at this least. Below it the
conversion is no longer exact: the velocity is too small by the factor t / MIN_TIME (or (1 - t) / MIN_TIME), so a loss
on it weighs such times less and a sampler's last steps fall short of x_0, instead of errors growing without bound."""


@dataclass(frozen=True)
class FlowConfig:
    """`reference_tokens` is the sample size at which no shift is applied."""

    prediction: str = "velocity"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    reference_tokens: int = 256

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise UserError(f"prediction is '{self.prediction}', which is none of {', '.join(PREDICTIONS)}")
        if self.reference_tokens < 1 or self.logit_std < 0:
            raise UserError(f"reference_tokens={self.reference_tokens} and logit_std={self.logit_std} must be above 0")


def corrupt(x_0: Float[Array, "..."], noise: Float[Array, "..."], t: Float[Array, "..."]) -> Float[Array, "..."]:
    """x_t; `t` broadcasts."""
    return (1.0 - t) * x_0 + t * noise


def to_velocity(
    output: Float[Array, "..."], x_t: Float[Array, "..."], t: Float[Array, "..."], prediction: str
) -> Float[Array, "..."]:
    """The velocity that the network's output means: v = (x_t - x_0) / t = (ε - x_t) / (1 - t)."""
    if prediction == "x_0":
        return (x_t - output) / jnp.maximum(t, MIN_TIME)
    if prediction == "noise":
        return (output - x_t) / jnp.maximum(1.0 - t, MIN_TIME)
    return output


def to_x_0(velocity: Float[Array, "..."], x_t: Float[Array, "..."], t: Float[Array, "..."]) -> Float[Array, "..."]:
    """x_0 = x_t - t v."""
    return x_t - t * velocity


def to_noise(velocity: Float[Array, "..."], x_t: Float[Array, "..."], t: Float[Array, "..."]) -> Float[Array, "..."]:
    """ε = x_t + (1 - t) v."""
    return x_t + (1.0 - t) * velocity


def shift(
    t: Float[Array, "..."], num_tokens: Int[Array, "..."], reference_tokens: int | Int[Array, ""]
) -> Float[Array, "..."]:
    """`shift_by` the factor of a sample of `num_tokens`."""
    return shift_by(t, shift_factor(num_tokens, reference_tokens))


def shift_factor(num_tokens: Int[Array, "..."], reference_tokens: int | Int[Array, ""]) -> Float[Array, "..."]:
    """a = sqrt(num_tokens / reference_tokens): the noise that hides as much of a sample with more tokens."""
    return jnp.sqrt(jnp.maximum(num_tokens, 1) / reference_tokens)


def shift_by(t: Float[Array, "..."], a: Float[Array, "..."]) -> Float[Array, "..."]:
    """a t / (1 + (a - 1) t) (Esser et al. 2024, eq. 23): a above 1 moves times towards 1; 0 and 1 stay, exactly.
    The inverse is by 1 / a."""
    return a * t / (a * t + (1.0 - t))


def draw_times(
    key: jax.Array, num_tokens: Int[Array, " G"], cfg: FlowConfig, reference_tokens: int | Int[Array, ""]
) -> Float[Array, " G"]:
    """One logit-normal time for each segment of a row, shifted by the segment's number of tokens over the reference:
    the config's, or that of the stage that the run is in."""
    t = jax.nn.sigmoid(cfg.logit_mean + cfg.logit_std * jax.random.normal(key, num_tokens.shape))
    return shift(t, num_tokens, reference_tokens)
