"""Inception-v3 as FID uses it: the network of TensorFlow's `inception-2015-12-05` (Szegedy et al. 2015).

It differs from torchvision's in three ways: average pools leave their padding out of the mean, the pool of the last
block takes the maximum, and there are 1008 classes. Features are the 2048 means of the last block ("pool3"); the
Inception score takes the classifier's logits without their bias, as the published implementations do.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sora_jax.models.branches import FoldedUnit, Fork, Layer, Mixed, Pool, Unit, Wiring, run_layers, thinned, wirings

EPS = 1e-3
MIN_SIDE = 75
"""Pixels a side of the smallest picture that leaves each layer a position."""


@dataclass(frozen=True)
class InceptionConfig:
    """The published network; `divisor` divides all widths (at most 16), for tests."""

    divisor: int = 1
    num_classes: int = 1008


def _unit(name: str, width: int, size: int | tuple[int, int] = 1, stride: int = 1, padding: str = "SAME") -> Unit:
    sides = (size, size) if isinstance(size, int) else size
    return Unit(sides, (stride, stride), padding, name=name, width=width)


MEAN = Pool((3, 3), (1, 1), kind="mean")
MAXIMUM = Pool((3, 3), (1, 1), kind="max")
HALVE = Pool((3, 3), (2, 2), "VALID", kind="max")


def _block_a(name: str, pooled: int) -> Mixed:
    double = (_unit("branch3x3dbl_1", 64), _unit("branch3x3dbl_2", 96, 3), _unit("branch3x3dbl_3", 96, 3))
    return Mixed(
        name,
        (
            (_unit("branch1x1", 64),),
            (_unit("branch5x5_1", 48), _unit("branch5x5_2", 64, 5)),
            double,
            (MEAN, _unit("branch_pool", pooled)),
        ),
    )


def _block_b(name: str) -> Mixed:
    double = (_unit("branch3x3dbl_1", 64), _unit("branch3x3dbl_2", 96, 3))
    return Mixed(
        name,
        (
            (_unit("branch3x3", 384, 3, 2, "VALID"),),
            (*double, _unit("branch3x3dbl_3", 96, 3, 2, "VALID")),
            (HALVE,),
        ),
    )


def _block_c(name: str, width: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    single = (_unit("branch7x7_1", width), _unit("branch7x7_2", width, row), _unit("branch7x7_3", 192, column))
    double = (
        _unit("branch7x7dbl_1", width),
        _unit("branch7x7dbl_2", width, column),
        _unit("branch7x7dbl_3", width, row),
        _unit("branch7x7dbl_4", width, column),
        _unit("branch7x7dbl_5", 192, row),
    )
    return Mixed(name, ((_unit("branch1x1", 192),), single, double, (MEAN, _unit("branch_pool", 192))))


def _block_d(name: str) -> Mixed:
    seven = (_unit("branch7x7x3_1", 192), _unit("branch7x7x3_2", 192, (1, 7)), _unit("branch7x7x3_3", 192, (7, 1)))
    return Mixed(
        name,
        (
            (_unit("branch3x3_1", 192), _unit("branch3x3_2", 320, 3, 2, "VALID")),
            (*seven, _unit("branch7x7x3_4", 192, 3, 2, "VALID")),
            (HALVE,),
        ),
    )


def _block_e(name: str, pool: Pool) -> Mixed:
    def fork(branch: str) -> Fork:
        return Fork((_unit(f"{branch}a", 384, (1, 3)), _unit(f"{branch}b", 384, (3, 1))))

    return Mixed(
        name,
        (
            (_unit("branch1x1", 320),),
            (_unit("branch3x3_1", 384), fork("branch3x3_2")),
            (_unit("branch3x3dbl_1", 448), _unit("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")),
            (pool, _unit("branch_pool", 192)),
        ),
    )


LAYERS: tuple[Layer, ...] = (
    _unit("Conv2d_1a_3x3", 32, 3, 2, "VALID"),
    _unit("Conv2d_2a_3x3", 32, 3, 1, "VALID"),
    _unit("Conv2d_2b_3x3", 64, 3),
    HALVE,
    _unit("Conv2d_3b_1x1", 80),
    _unit("Conv2d_4a_3x3", 192, 3, 1, "VALID"),
    HALVE,
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    _block_b("Mixed_6a"),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    _block_d("Mixed_7a"),
    _block_e("Mixed_7b", MEAN),
    _block_e("Mixed_7c", MAXIMUM),
)
"""Named as torchvision names them."""


def inception_units(config: InceptionConfig) -> tuple[list[Wiring], int]:
    """Every unit with its input's channels, and the number of features."""
    return wirings(thinned(LAYERS, config.divisor), 3)


class Inception(nnx.Module):
    """Pictures to features and logits."""

    def __init__(self, config: InceptionConfig, rngs: nnx.Rngs):
        units, width = inception_units(config)
        self.config = config
        self.units = nnx.Dict({wiring.name: FoldedUnit(wiring, rngs) for wiring in units})
        self.head = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (width, config.num_classes)))

    def __call__(self, x: Float[Array, "N Y X 3"]) -> tuple[Float[Array, "N D"], Float[Array, "N classes"]]:
        """Features and logits (without their bias) of pictures in [-1, 1], at least `MIN_SIDE` pixels a side."""
        x = run_layers(thinned(LAYERS, self.config.divisor), self.units, x)
        features = jnp.mean(x, axis=(1, 2))
        return features, jnp.matmul(features, self.head[...], precision=jax.lax.Precision.HIGHEST)
