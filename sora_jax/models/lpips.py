"""LPIPS: how different two pictures look, by a network's features (Zhang, Isola, Efros, Shechtman & Wang 2018).

    d(x, y) = Σ_l 1 / (H_l W_l) Σ_hw || w_l ⊙ (f̂_l(x) - f̂_l(y))_hw ||²        (eq. 1)

f̂_l are the activations of layer l divided by their length over channels, w_l² the learned weights of the published
heads (v0.1). The backbones are torchvision's: AlexNet, VGG-16, SqueezeNet 1.1. Training follows this distance's
gradient through the decoded pictures only; the weights are frozen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from data_pipeline.errors import UserError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation of each colour, for pixels in [-1, 1]."""
EPS = 1e-10
MIN_SIDE = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Pixels a side of the smallest picture that leaves each layer at least one position."""


@dataclass(frozen=True)
class Conv:
    """A convolution and its ReLU. `name` is the layer's in torchvision's files."""

    name: str
    width: int
    size: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Fire:
    """SqueezeNet's module: 1x1 to `squeeze` channels, then 1x1 and 3x3 side by side, `expand` channels each."""

    name: str
    squeeze: int
    expand: int


@dataclass(frozen=True)
class Pool:
    """The maximum of windows, two apart; with `ceil` the last one may stick out."""

    size: int
    ceil: bool = False


Layer = Conv | Fire | Pool

BACKBONES: dict[str, tuple[tuple[Layer, ...], ...]] = {
    "alex": (
        (Conv("features.0", 64, 11, 4, 2),),
        (Pool(3), Conv("features.3", 192, 5, 1, 2)),
        (Pool(3), Conv("features.6", 384)),
        (Conv("features.8", 256),),
        (Conv("features.10", 256),),
    ),
    "vgg": (
        (Conv("features.0", 64), Conv("features.2", 64)),
        (Pool(2), Conv("features.5", 128), Conv("features.7", 128)),
        (Pool(2), Conv("features.10", 256), Conv("features.12", 256), Conv("features.14", 256)),
        (Pool(2), Conv("features.17", 512), Conv("features.19", 512), Conv("features.21", 512)),
        (Pool(2), Conv("features.24", 512), Conv("features.26", 512), Conv("features.28", 512)),
    ),
    "squeeze": (
        (Conv("features.0", 64, 3, 2, 0),),
        (Pool(3, ceil=True), Fire("features.3", 16, 64), Fire("features.4", 16, 64)),
        (Pool(3, ceil=True), Fire("features.6", 32, 128), Fire("features.7", 32, 128)),
        (Pool(3, ceil=True), Fire("features.9", 48, 192)),
        (Fire("features.10", 48, 192),),
        (Fire("features.11", 64, 256),),
        (Fire("features.12", 64, 256),),
    ),
}
"""Layers in order, cut after each activation that is compared."""


def convolutions(layer: Layer, width_in: int) -> tuple[list[tuple[str, int, int, int]], int]:
    """(name, size, channels in, channels out) of each convolution of a layer, and the channels that it passes on."""
    if isinstance(layer, Pool):
        return [], width_in
    if isinstance(layer, Conv):
        return [(layer.name, layer.size, width_in, layer.width)], layer.width
    squeeze = (f"{layer.name}.squeeze", 1, width_in, layer.squeeze)
    sides = [(f"{layer.name}.expand{size}x{size}", size, layer.squeeze, layer.expand) for size in (1, 3)]
    return [squeeze, *sides], 2 * layer.expand


def weight_shapes(net: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all weights: kernels (height, width, in, out), biases, and heads `head_0`, … `[channels]`."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = 3
    for number, stage in enumerate(BACKBONES[net]):
        for layer in stage:
            found, width = convolutions(layer, width)
            for name, size, width_in, width_out in found:
                shapes[f"{name}.kernel"] = (size, size, width_in, width_out)
                shapes[f"{name}.bias"] = (width_out,)
        shapes[f"head_{number}"] = (width,)
    return shapes


def lpips(
    net: str, weights: Mapping[str, Any], x: Float[Array, "N Y X 3"], y: Float[Array, "N Y X 3"]
) -> Float[Array, " N"]:
    """The distance of each pair of pictures in [-1, 1]. Raises UserError for pictures too small for the backbone."""
    total = jnp.zeros(len(x), jnp.float32)
    for number, (f, g) in enumerate(zip(features(net, weights, x), features(net, weights, y), strict=True)):
        difference = jnp.square(_unit(f) - _unit(g))
        total += jnp.mean(jnp.einsum("nyxc,c->nyx", difference, weights[f"head_{number}"]), axis=(1, 2))
    return total


def features(net: str, weights: Mapping[str, Any], x: Float[Array, "N Y X 3"]) -> list[jax.Array]:
    """The activations that are compared, `[N, y, x, channels]` each. Raises UserError for pictures too small."""
    check_size(net, *x.shape[1:3])
    x, found = (x.astype(jnp.float32) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE), []
    for stage in BACKBONES[net]:
        for layer in stage:
            if isinstance(layer, Pool):
                x = _pool(x, layer)
            elif isinstance(layer, Conv):
                x = _conv(weights, layer.name, x, layer.stride, layer.padding)
            else:
                x = _fire(weights, layer.name, x)
        found.append(x)
    return found


def check_size(net: str, height: int, width: int) -> None:
    """Raises UserError for pictures that are too small for the backbone."""
    if min(height, width) < MIN_SIDE[net]:
        raise UserError(
            f"LPIPS with the backbone '{net}' needs {MIN_SIDE[net]} pixels a side, got {width}x{height}; choose larger "
            f"crops, or another backbone ({', '.join(f'{other}: {side}' for other, side in MIN_SIDE.items())})"
        )


def _conv(weights: Mapping[str, Any], name: str, x: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    dims, border = ("NHWC", "HWIO", "NHWC"), [(padding, padding)] * 2
    x = jax.lax.conv_general_dilated(x, weights[f"{name}.kernel"], (stride, stride), border, dimension_numbers=dims)
    return jax.nn.relu(x + weights[f"{name}.bias"])


def _fire(weights: Mapping[str, Any], name: str, x: jax.Array) -> jax.Array:
    x = _conv(weights, f"{name}.squeeze", x)
    sides = [_conv(weights, f"{name}.expand1x1", x), _conv(weights, f"{name}.expand3x3", x, padding=1)]
    return jnp.concatenate(sides, axis=-1)


def _pool(x: jax.Array, pool: Pool) -> jax.Array:
    """Torch's maximum pooling; what sticks out of the picture is minus infinity."""
    beyond = [(0, (pool.size - n) % 2 if pool.ceil else 0) for n in x.shape[1:3]]
    border = [(0, 0), *beyond, (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, pool.size, pool.size, 1), (1, 2, 2, 1), border)


def _unit(f: jax.Array) -> jax.Array:
    """Features divided by their length. Where all are zero the root has no gradient, and the ReLUs before it none."""
    squares = jnp.sum(jnp.square(f), axis=-1, keepdims=True)
    length = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return f / (length + EPS)
