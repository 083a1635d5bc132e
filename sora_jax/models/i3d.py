"""I3D (Carreira & Zisserman 2017) trained on Kinetics-400, as FVD uses it: the mean of its logits over time.

Inception-v1 with every kernel inflated over time. The published ports differ in what they add to the variance of the
batch norm (1e-3 in TensorFlow and the TorchScript file, 1e-5 in the ports of the PyTorch state dict), and one pools
with a fixed padding over time: `I3dConfig` says which.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipeline.errors import UserError
from sora_jax.models.branches import FoldedUnit, Layer, Mixed, Pool, Unit, Wiring, run_layers, thinned, wirings

EPS = 1e-3
MIN_FRAMES = 9
"""The fewest that leave the head its window of two: frames are halved three times, rounded up."""
HEAD_FRAMES = 2


@dataclass(frozen=True)
class I3dConfig:
    """`fixed_padding` pools as the port of hassony2 does: by window minus stride over time, whatever the number of
    frames. `divisor` divides all widths (at most 8), for tests."""

    fixed_padding: bool = False
    divisor: int = 1
    num_classes: int = 400


def _unit(name: str, width: int, size: int = 1, stride: int = 1) -> Unit:
    return Unit((size,) * 3, (stride,) * 3, name=name, width=width)


def _block(name: str, *widths: int) -> Mixed:
    """1x1x1; 3x3x3 twice, each after a 1x1x1; and a pool before a 1x1x1."""
    alone, reduce_1, wide_1, reduce_2, wide_2, pooled = widths
    return Mixed(
        name,
        (
            (_unit("b0", alone),),
            (_unit("b1a", reduce_1), _unit("b1b", wide_1, 3)),
            (_unit("b2a", reduce_2), _unit("b2b", wide_2, 3)),
            (Pool((3, 3, 3), (1, 1, 1), kind="max"), _unit("b3b", pooled)),
        ),
    )


def i3d_layers(config: I3dConfig) -> tuple[Layer, ...]:
    """The network up to its last block, with the names of piergiaj's port."""
    padding = "FIXED" if config.fixed_padding else "SAME"
    layers = (
        _unit("Conv3d_1a_7x7", 64, 7, 2),
        Pool((1, 3, 3), (1, 2, 2), padding, kind="max"),
        _unit("Conv3d_2b_1x1", 64),
        _unit("Conv3d_2c_3x3", 192, 3),
        Pool((1, 3, 3), (1, 2, 2), padding, kind="max"),
        _block("Mixed_3b", 64, 96, 128, 16, 32, 32),
        _block("Mixed_3c", 128, 128, 192, 32, 96, 64),
        Pool((3, 3, 3), (2, 2, 2), padding, kind="max"),
        _block("Mixed_4b", 192, 96, 208, 16, 48, 64),
        _block("Mixed_4c", 160, 112, 224, 24, 64, 64),
        _block("Mixed_4d", 128, 128, 256, 24, 64, 64),
        _block("Mixed_4e", 112, 144, 288, 32, 64, 64),
        _block("Mixed_4f", 256, 160, 320, 32, 128, 128),
        Pool((2, 2, 2), (2, 2, 2), padding, kind="max"),
        _block("Mixed_5b", 256, 160, 320, 32, 128, 128),
        _block("Mixed_5c", 384, 192, 384, 48, 128, 128),
    )
    return thinned(layers, config.divisor)


def i3d_units(config: I3dConfig) -> tuple[list[Wiring], int]:
    """Every unit with its input's channels, and the channels that the head reads."""
    return wirings(i3d_layers(config), 3)


class I3d(nnx.Module):
    """Videos to logits."""

    def __init__(self, config: I3dConfig, rngs: nnx.Rngs):
        units, width = i3d_units(config)
        self.config = config
        self.units = nnx.Dict({wiring.name: FoldedUnit(wiring, rngs) for wiring in units})
        self.head = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (width, config.num_classes)))
        self.bias = nnx.Param(jnp.zeros(config.num_classes))

    def __call__(self, x: Float[Array, "N T Y X 3"]) -> Float[Array, "N classes"]:
        """The logits' mean over time, of videos in [-1, 1] of 224 pixels a side.

        The head is a mean over two frames and all positions (7x7 of them), a linear layer, and a mean over time: all
        linear, so the means come first. Raises UserError for fewer than `MIN_FRAMES` frames.
        """
        if x.shape[1] < MIN_FRAMES:
            raise UserError(f"I3D needs at least {MIN_FRAMES} frames, got {x.shape[1]}; give it longer videos")
        x = run_layers(i3d_layers(self.config), self.units, x)
        windows = x.shape[1] - HEAD_FRAMES + 1
        frames = jnp.mean(x, axis=(2, 3))
        means = sum(frames[:, i : i + windows] for i in range(HEAD_FRAMES)) / HEAD_FRAMES
        features = jnp.mean(means, axis=1)
        return jnp.matmul(features, self.head[...], precision=jax.lax.Precision.HIGHEST) + self.bias[...]
