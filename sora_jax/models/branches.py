"""Networks of units, pools and parallel branches, written as tables: what Inception-v3 and I3D are made of.

A unit is a convolution, a batch norm and a ReLU; the norm is folded into the kernel and a bias when weights are read
(`fold`), since these networks are only ever run. The same code serves images `[N, Y, X, C]` and videos
`[N, T, Y, X, C]`. Padding is XLA's "SAME" (TensorFlow's, by the size of the input) or "VALID".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

Size = tuple[int, ...]
DIMS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


@dataclass(frozen=True)
class Window:
    """What moves over positions."""

    size: Size
    stride: Size
    padding: str = "SAME"


@dataclass(frozen=True, kw_only=True)
class Unit(Window):
    """Convolution, batch norm, ReLU. `name` is its module's in the canonical file."""

    name: str
    width: int


@dataclass(frozen=True, kw_only=True)
class Pool(Window):
    """The maximum ("max"), or the mean without the padding ("mean"), of windows.

    `padding` "FIXED" pads by window minus stride whatever the size of the input, and keeps a last window that sticks
    out: SAME where the stride divides the input, one position later elsewhere.
    """

    kind: str


@dataclass(frozen=True)
class Fork:
    """Units side by side on one input; what they give is concatenated."""

    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Mixed:
    """Branches side by side; each is a chain. Names of units within are below `name`."""

    name: str
    branches: tuple[tuple[Unit | Pool | Fork, ...], ...]


Layer = Unit | Pool | Fork | Mixed


@dataclass(frozen=True)
class Wiring:
    """A unit as it stands in a network: its full name and the channels that reach it."""

    name: str
    unit: Unit
    width_in: int


def wirings(layers: Sequence[Layer], width_in: int, prefix: str = "") -> tuple[list[Wiring], int]:
    """Every unit of a chain in order, and the channels that the chain passes on."""
    found: list[Wiring] = []
    for layer in layers:
        if isinstance(layer, Unit):
            found.append(Wiring(f"{prefix}{layer.name}", layer, width_in))
            width_in = layer.width
        elif isinstance(layer, Fork | Mixed):
            below = f"{prefix}{layer.name}." if isinstance(layer, Mixed) else prefix
            inner = [wirings(branch, width_in, below) for branch in _branches(layer)]
            found += [wiring for units, _ in inner for wiring in units]
            width_in = sum(width for _, width in inner)
    return found, width_in


def thinned(layers: Sequence[Layer], divisor: int) -> tuple[Layer, ...]:
    """The same chain with every width divided: a small network of the same wiring, for tests."""
    return tuple(_thin(layer, divisor) for layer in layers)


def _thin(layer: Any, divisor: int) -> Any:
    if isinstance(layer, Unit):
        return replace(layer, width=layer.width // divisor)
    if isinstance(layer, Fork):
        return Fork(tuple(_thin(unit, divisor) for unit in layer.units))
    if isinstance(layer, Mixed):
        return Mixed(layer.name, tuple(thinned(branch, divisor) for branch in layer.branches))
    return layer


def _branches(layer: Fork | Mixed) -> Iterator[Sequence[Layer]]:
    yield from (([unit] for unit in layer.units) if isinstance(layer, Fork) else layer.branches)


class FoldedUnit(nnx.Module):
    """A unit whose norm is part of its kernel and bias."""

    def __init__(self, wiring: Wiring, rngs: nnx.Rngs):
        self.unit = wiring.unit
        shape = (*wiring.unit.size, wiring.width_in, wiring.unit.width)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(wiring.unit.width))

    def __call__(self, x: Float[Array, "N ... C"]) -> Float[Array, "N ... D"]:
        unit, kernel = self.unit, self.kernel[...]
        if len(unit.size) == 3 and unit.size[0] > 1:
            x = jax.lax.platform_dependent(
                x,
                kernel,
                cpu=lambda x, kernel: _by_frames(x, kernel, unit),
                default=lambda x, kernel: _convolved(x, kernel, unit),
            )
        else:
            x = _convolved(x, kernel, unit)
        return nnx.relu(x + self.bias[...])


def _convolved(x: Float[Array, "N ... C"], kernel: Float[Array, "... C D"], window: Window) -> Float[Array, "N ... D"]:
    # In full float32: TPUs and GPUs would round factors to bfloat16 or TF32 by default, and scores with them.
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window.stride,
        window.padding,
        dimension_numbers=DIMS[x.ndim - 2],
        precision=jax.lax.Precision.HIGHEST,
    )


def _by_frames(
    x: Float[Array, "N T Y X C"], kernel: Float[Array, "K y x C D"], unit: Unit
) -> Float[Array, "N t _ _ D"]:
    """The same convolution of single frames, each with its neighbours' channels beside its own.

    XLA's convolutions over time are slow on a CPU (LOG.md).
    """
    length, stride = unit.size[0], unit.stride[0]
    (pads,) = jax.lax.padtype_to_pads(x.shape[1:2], (length,), (stride,), unit.padding)
    x = jnp.pad(x, ((0, 0), pads, (0, 0), (0, 0), (0, 0)))
    frames = (x.shape[1] - length) // stride + 1
    x = jnp.concatenate([x[:, i : i + (frames - 1) * stride + 1 : stride] for i in range(length)], axis=-1)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*unit.size[1:], -1, unit.width)
    found = _convolved(x.reshape(-1, *x.shape[2:]), flat, Window(unit.size[1:], unit.stride[1:], unit.padding))
    return found.reshape(-1, frames, *found.shape[1:])


def run_layers(
    layers: Sequence[Layer], units: Mapping[str, Any], x: Float[Array, "N ... C"], prefix: str = ""
) -> Float[Array, "N ... D"]:
    """`x` through a chain whose units are in `units` under their full names."""
    for layer in layers:
        if isinstance(layer, Unit):
            x = units[f"{prefix}{layer.name}"](x)
        elif isinstance(layer, Pool):
            x = pool(x, layer)
        else:
            below = f"{prefix}{layer.name}." if isinstance(layer, Mixed) else prefix
            x = jnp.concatenate([run_layers(branch, units, x, below) for branch in _branches(layer)], axis=-1)
    return x


def pool(x: Float[Array, "N ... C"], layer: Pool) -> Float[Array, "N ... C"]:
    """A pool over all dims but the first and the last."""
    if layer.kind == "max":
        return _reduced(x, layer, -jnp.inf, jax.lax.max)
    ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
    return _reduced(x, layer, 0.0, jax.lax.add) / _reduced(ones, layer, 0.0, jax.lax.add)


def _reduced(x: Array, layer: Pool, start: float, combine: Any) -> Array:
    """Windows reduced along one dim after the other: 9 numbers in place of 27."""
    if layer.padding == "FIXED":
        padding = _fixed_padding(x.shape, layer)
    else:
        window, stride = (1, *layer.size, 1), (1, *layer.stride, 1)
        padding = jax.lax.padtype_to_pads(x.shape, window, stride, layer.padding)
    for dim in range(1, x.ndim - 1):
        size, stride = (
            [of if d == dim else 1 for d in range(x.ndim)] for of in (layer.size[dim - 1], layer.stride[dim - 1])
        )
        pads = [padding[dim] if d == dim else (0, 0) for d in range(x.ndim)]
        x = jax.lax.reduce_window(x, start, combine, size, stride, pads)
    return x


def _fixed_padding(shape: Size, layer: Pool) -> list[tuple[int, int]]:
    sides = []
    for length, size, stride in zip(shape[1:-1], layer.size, layer.stride, strict=True):
        total = max(size - stride, 0)
        beyond = -(length + total - size) % stride
        sides.append((total // 2, total - total // 2 + beyond))
    return [(0, 0), *sides, (0, 0)]


def fold(tensors: Mapping[str, np.ndarray], name: str, eps: float) -> dict[str, Float32[np.ndarray, "..."]]:
    """The kernel and bias of a unit from its tensors in PyTorch's layout, computed in float64.

    gamma (W x - mean) / sqrt(variance + eps) + beta = (s W) x + (beta - s mean) with s = gamma / sqrt(variance + eps).
    """
    weight, gamma, beta, mean, variance = (
        tensors[f"{name}.{part}"].astype(np.float64) for part in ("weight", "gamma", "beta", "mean", "variance")
    )
    scale = gamma / np.sqrt(variance + eps)
    kernel = np.moveaxis(weight, (0, 1), (-1, -2)) * scale
    return {"kernel": kernel.astype(np.float32), "bias": (beta - scale * mean).astype(np.float32)}


def unit_shapes(wiring: Wiring) -> dict[str, Size]:
    """Name -> shape of a unit's tensors in the canonical file: PyTorch's layout, one vector each for the norm."""
    unit = wiring.unit
    shapes = {f"{wiring.name}.weight": (unit.width, wiring.width_in, *unit.size)}
    return shapes | {f"{wiring.name}.{part}": (unit.width,) for part in ("gamma", "beta", "mean", "variance")}
