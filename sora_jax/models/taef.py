"""TAEF2, a tiny autoencoder of single images (github.com/madebyollin/taesd, FLUX.2's latent space): 8x8, 32 channels.

Here because small published weights of it exist: real per-frame latents without training, and something to hold our own
autoencoder against. Frames are coded one by one, so nothing is compressed in time and there is no cache. A layer is
named by its place in the published sequence. GroupNorm in the blocks at the coarsest scale sees a whole frame, so that
tiles are an approximation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sora_jax.models.autoencoder import Cache, Compression, Posterior
from sora_jax.models.layers import DTYPES

SCALES = 3
BLOCKS = 3
"""At each of the three coarser scales; one more at the finest."""
GROUPS = 4
POOL_FACTOR = 4
LIMIT = 3.0
"""The decoder squashes what it gets into this range."""
NO_NOISE = -30.0
"""The log-variance of a latent that is not drawn: the smallest that our own encoder can say."""


@dataclass(frozen=True)
class TaefConfig(Compression):
    """The defaults are the published network's."""

    latent_channels: int = 32
    width: int = 64
    dtype: str = "float32"

    @property
    def spatial_compression(self) -> int:
        return 2**SCALES

    @property
    def temporal_compression(self) -> int:
        return 1

    @property
    def spatial_reach(self) -> int:
        """Pixels that the convolutions reach: three a block, one for each resampling, one at either end."""
        blocks = 3 + sum(3 * BLOCKS * 2**scale for scale in range(1, SCALES + 1))
        return blocks + sum(2**scale for scale in range(SCALES)) + 1 + 2**SCALES

    @property
    def chunk_latents(self) -> int:
        """One: at full size an activation of a frame has 21 times as many numbers as the frame."""
        return 1


class Conv(nnx.Module):
    """3x3; with stride 2 the first window starts one pixel before the frame, as in PyTorch."""

    def __init__(self, shape: tuple[int, int], dtype: str, rngs: nnx.Rngs, *, stride: int = 1, bias: bool = True):
        around = ((1, 1), (1, 1))
        self.conv = nnx.Conv(*shape, (3, 3), stride, padding=around, use_bias=bias, dtype=DTYPES[dtype], rngs=rngs)

    def __call__(self, x: Float[Array, "N H W D"]) -> Float[Array, "N Y X E"]:
        return self.conv(x)


class Block(nnx.Module):
    """Three convolutions beside the identity; where `pools`, first a branch that knows the whole frame's statistics."""

    def __init__(self, width: int, dtype: str, rngs: nnx.Rngs, *, pools: bool = False):
        self.conv_0, self.conv_2, self.conv_4 = (Conv((width, width), dtype, rngs) for _ in range(3))
        if pools:
            wide, kind = POOL_FACTOR * width, DTYPES[dtype]
            self.pool_0 = nnx.Linear(width, wide, use_bias=False, dtype=kind, rngs=rngs)
            self.pool_1 = nnx.GroupNorm(wide, num_groups=GROUPS, epsilon=1e-5, dtype=kind, rngs=rngs)
            self.pool_3 = nnx.Linear(wide, width, use_bias=False, dtype=kind, rngs=rngs)
        self.pools = pools

    def __call__(self, x: Float[Array, "N H W D"]) -> Float[Array, "N H W D"]:
        if self.pools:
            x = x + self.pool_3(jax.nn.relu(self.pool_1(self.pool_0(x))))
        h = self.conv_2(jax.nn.relu(self.conv_0(x)))
        return jax.nn.relu(x + self.conv_4(jax.nn.relu(h)))


class Double(nnx.Module):
    """Every pixel becomes a square of two by two, then a convolution."""

    def __init__(self, width: int, dtype: str, rngs: nnx.Rngs):
        self.conv = Conv((width, width), dtype, rngs, bias=False)

    def __call__(self, x: Float[Array, "N H W D"]) -> Float[Array, "N Y X D"]:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


def _encoder(cfg: TaefConfig, rngs: nnx.Rngs) -> Iterator[tuple[int, nnx.Module]]:
    """(place in the published sequence, layer)."""
    width, dtype = cfg.width, cfg.dtype
    yield 0, Conv((3, width), dtype, rngs)
    yield 1, Block(width, dtype, rngs)
    for scale in range(SCALES):
        place = 2 + scale * (1 + BLOCKS)
        yield place, Conv((width, width), dtype, rngs, stride=2, bias=False)
        for i in range(BLOCKS):
            yield place + 1 + i, Block(width, dtype, rngs, pools=scale == SCALES - 1)
    yield 2 + SCALES * (1 + BLOCKS), Conv((width, cfg.latent_channels), dtype, rngs)


def _decoder(cfg: TaefConfig, rngs: nnx.Rngs) -> Iterator[tuple[int, nnx.Module]]:
    """(place in the published sequence, layer); the places between are layers without parameters."""
    width, dtype = cfg.width, cfg.dtype
    yield 1, Conv((cfg.latent_channels, width), dtype, rngs)
    for scale in range(SCALES):
        place = 3 + scale * (BLOCKS + 2)
        for i in range(BLOCKS):
            yield place + i, Block(width, dtype, rngs, pools=scale == 0)
        yield place + BLOCKS + 1, Double(width, dtype, rngs)
    last = 3 + SCALES * (BLOCKS + 2)
    yield last, Block(width, dtype, rngs)
    yield last + 1, Conv((width, 3), dtype, rngs)


class TinyAutoencoder(nnx.Module):
    """Encoder and decoder of frames, with the signature of a video autoencoder; the cache stays as it is."""

    def __init__(self, cfg: TaefConfig, rngs: nnx.Rngs):
        self.encoder = nnx.Dict({f"layer_{place}": layer for place, layer in _encoder(cfg, rngs)})
        self.decoder = nnx.Dict({f"layer_{place}": layer for place, layer in _decoder(cfg, rngs)})
        self.cfg = cfg

    def encode(self, video: Float[Array, "B T Y X 3"], cache: Cache) -> tuple[Posterior, Cache]:
        x = (video.reshape(-1, *video.shape[2:]).astype(DTYPES[self.cfg.dtype]) + 1.0) / 2.0
        for _, layer in _in_order(self.encoder):
            x = layer(x)
        mean = x.astype(jnp.float32).reshape(*video.shape[:2], *x.shape[1:])
        return Posterior(mean, jnp.full_like(mean, NO_NOISE)), cache

    def decode(self, latents: Float[Array, "B F H W C"], cache: Cache) -> tuple[Float[Array, "B T Y X 3"], Cache]:
        x = LIMIT * jnp.tanh(latents.reshape(-1, *latents.shape[2:]).astype(DTYPES[self.cfg.dtype]) / LIMIT)
        for place, layer in _in_order(self.decoder):
            x = jax.nn.relu(layer(x)) if place == 1 else layer(x)
        return (2.0 * x.astype(jnp.float32) - 1.0).reshape(*latents.shape[:2], *x.shape[1:]), cache


def _in_order(layers: nnx.Dict) -> list[tuple[int, nnx.Module]]:
    """By place in the sequence, not by name: "layer_10" sorts before "layer_2"."""
    return sorted((int(name.removeprefix("layer_")), layer) for name, layer in layers.items())
