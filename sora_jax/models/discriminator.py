"""A patch discriminator of clips: one logit for each patch of space and time (Isola et al. 2017, in three dims).

Each layer joins a frame with its neighbours along channels and convolves 4x4 with stride 2: a 3x4x4 convolution, as a
2D one. Normalisation is per position, so that no clip of a batch sees another and an image is a one-frame video.

The losses are the hinge (Lim & Ye 2017), the adaptive weight of VQGAN (Esser, Rombach & Ommer 2021, eq. 7) and R1 on
real clips (Mescheder, Geiger & Nowozin 2018, eq. 9).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipeline.errors import UserError
from sora_jax.config import at_least
from sora_jax.models.layers import RMSNorm

MAX_ADAPTIVE_WEIGHT = 1e4
SLOPE = 0.2


@dataclass(frozen=True)
class GanConfig:
    """`weight` (0: no discriminator) multiplies the adaptive weight; both networks leave each other alone before
    `start_step`. `r1_weight` is gamma of R1. `learning_rate` 0 is the autoencoder's. A layer for each of `widths`."""

    weight: float = 0.0
    start_step: int = 0
    r1_weight: float = 0.0
    learning_rate: float = 0.0
    widths: tuple[int, ...] = (64, 128, 256)

    def __post_init__(self) -> None:
        at_least(self, "config.gan", 0, "weight", "start_step", "r1_weight", "learning_rate")
        if not self.widths or min(self.widths) < 1:
            raise UserError(
                f"config.gan.widths is {self.widths}; the discriminator needs a layer, of a channel or more"
            )

    def check_size(self, height: int, width: int) -> None:
        """Raises UserError for crops that leave the last layer no patch."""
        if min(height, width) < 2 ** len(self.widths):
            raise UserError(
                f"a discriminator of {len(self.widths)} layers needs {2 ** len(self.widths)} pixels a side, got "
                f"{width}x{height}; choose larger crops or fewer config.gan.widths"
            )


class PatchLayer(nnx.Module):
    """Three frames by 4x4 pixels, stride 2 in space; frames beyond the clip's ends are copies of the ends."""

    def __init__(self, width_in: int, width_out: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3 * width_in, width_out, (4, 4), strides=2, padding=1, rngs=rngs)
        self.norm = RMSNorm(width_out)

    def __call__(self, x: Float[Array, "B T Y X D"]) -> Float[Array, "B T Y2 X2 E"]:
        before, after = jnp.concatenate([x[:, :1], x[:, :-1]], 1), jnp.concatenate([x[:, 1:], x[:, -1:]], 1)
        x = jnp.concatenate([before, x, after], axis=-1)
        y = self.conv(x.reshape(-1, *x.shape[2:]))
        return jax.nn.leaky_relu(self.norm(y.reshape(*x.shape[:2], *y.shape[1:])), SLOPE)


class Discriminator(nnx.Module):
    """Clips in [-1, 1] → a logit a patch: high for real ones. Every layer but the first sees half of the frames."""

    def __init__(self, cfg: GanConfig, rngs: nnx.Rngs):
        widths = (3, *cfg.widths)
        self.layers = nnx.Dict(
            {f"layer_{i}": PatchLayer(widths[i], widths[i + 1], rngs) for i in range(len(cfg.widths))}
        )
        self.logit = nnx.Linear(cfg.widths[-1], 1, rngs=rngs)

    def __call__(self, video: Float[Array, "B T Y X 3"]) -> Float[Array, "B F H W"]:
        x = video
        for i in range(len(self.layers)):
            x = self.layers[f"layer_{i}"](x[:, ::2] if i else x)
        return self.logit(x)[..., 0]


def rows_mean(x: Float[Array, "B F H W"]) -> Float[Array, " B"]:
    return x.mean((1, 2, 3))


def hinge(real: Float[Array, "B F H W"], fake: Float[Array, "B F H W"]) -> Float[Array, " B"]:
    """max(0, 1 - D(x)) + max(0, 1 + D(x̂)), the mean over each clip's patches."""
    return rows_mean(jax.nn.relu(1.0 - real)) + rows_mean(jax.nn.relu(1.0 + fake))


def r1(
    score: Callable[[Float[Array, "B T Y X 3"]], Float[Array, "B F H W"]], video: Float[Array, "B T Y X 3"]
) -> Float[Array, " B"]:
    """|| ∇_x D(x) ||² of real clips, D the mean over patches."""
    gradient = jax.grad(lambda x: rows_mean(score(x)).sum())(video)
    return jnp.square(gradient).sum((1, 2, 3, 4))


def adaptive_weight(of_reconstruction: Float[Array, "..."], of_gan: Float[Array, "..."]) -> Float[Array, ""]:
    """λ = || ∇_L L_rec || / (|| ∇_L L_gan || + 1e-6), gradients at the decoder's last layer L (eq. 7)."""
    ratio = jnp.linalg.norm(of_reconstruction.ravel()) / (jnp.linalg.norm(of_gan.ravel()) + 1e-6)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, MAX_ADAPTIVE_WEIGHT))
