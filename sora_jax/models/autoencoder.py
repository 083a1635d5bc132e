"""The video compression network: a convolutional autoencoder that is causal in time and streams exactly.

`1 + c n` frames become `1 + n` latent frames (c = temporal compression): latent 0 codes one frame, every later one
codes c frames and leans on the past, so an image is a one-frame video and a clip can be coded in chunks. Chunked and
whole coding are equal because nothing looks ahead, normalisation is per position, and every temporal layer takes and
returns an explicit cache of the frames that it still needs.

The first stage is a space-to-depth, temporal kernels are sums of matrix products over shifted frames, and spatial
kernels are 2D convolutions: XLA's 3D convolutions are several times slower on CPU.

On a mesh, clips are split over the axes of rows and each frame's rows of pixels over `context`: a long or large clip
takes the memory of several devices, which exchange the rows that a 3x3 kernel reaches.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipeline.errors import UserError
from sora_jax import flops
from sora_jax.models.layers import DTYPES, RMSNorm
from sora_jax.parallel import constrain

ACTIVATION = ("row", None, "height", None, None)
"""The logical dims of `[B, T, H, W, D]`."""
Cache = list[jax.Array]
"""For each temporal layer, in order, the last input frames that the next chunk needs. Empty before the first chunk."""


class Compression:
    """What every autoencoder's config says: the latents' channels, how many pixels and frames one codes, how many
    pixels beyond these it depends on, and how many latent frames are coded at a time."""

    latent_channels: int
    spatial_compression: int
    temporal_compression: int
    spatial_reach: int
    chunk_latents: int

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(F, H, W, C). Raises UserError for frames that are not `1 + c n` or sizes that do not divide."""
        c, s = self.temporal_compression, self.spatial_compression
        if num_frames < 1 or (num_frames - 1) % c:
            nearest = 1 + c * max(0, round((num_frames - 1) / c))
            raise UserError(f"{num_frames} frames is not 1 + {c} n; the nearest legal number is {nearest}")
        if min(height, width) < s or height % s or width % s:
            near = tuple(s * max(1, round(n / s)) for n in (width, height))
            raise UserError(f"{width}x{height} does not divide by {s}; the nearest legal size is {near[0]}x{near[1]}")
        return 1 + (num_frames - 1) // c, height // s, width // s, self.latent_channels


@dataclass(frozen=True)
class Stage:
    """Downsample by (`space`, `time`), then `num_blocks` residual blocks of `width` channels."""

    space: int
    time: int
    width: int
    num_blocks: int


@dataclass(frozen=True)
class AutoencoderConfig(Compression):
    """`patch_size` is the first space-to-depth; compression is the product over it and the stages.

    `norm_latents`: whether the encoder normalises every position before it writes the latents. That takes away how
    much contrast a position has; without it a fresh network starts as a linear code, which is half of the way.
    """

    latent_channels: int = 16
    patch_size: int = 4
    stages: tuple[Stage, ...] = (Stage(1, 1, 64, 1), Stage(2, 2, 128, 1), Stage(1, 2, 192, 2))
    dtype: str = "float32"
    norm_latents: bool = True

    @property
    def spatial_compression(self) -> int:
        return self.patch_size * math.prod(s.space for s in self.stages)

    @property
    def temporal_compression(self) -> int:
        return math.prod(s.time for s in self.stages)

    @property
    def spatial_reach(self) -> int:
        """Pixels beyond its own that a latent depends on, and the other way round: one ring a block, at its scale."""
        scale, reach = self.patch_size, 0
        for stage in self.stages:
            scale *= stage.space
            reach += scale * stage.num_blocks
        return reach

    @property
    def chunk_latents(self) -> int:
        return 4


class Posterior(NamedTuple):
    """A diagonal Gaussian over latents `[B, F, H, W, C]`."""

    mean: jax.Array
    log_variance: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return self.mean + jnp.exp(0.5 * self.log_variance) * jax.random.normal(key, self.mean.shape)

    def kl(self) -> jax.Array:
        """KL divergence to the unit Gaussian of every latent value, in nats (Kingma & Welling 2013, appendix B)."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.log_variance) - 1.0 - self.log_variance)


class Stream:
    """The caches of one chunk while it passes through the layers: each temporal layer takes its own, in order."""

    def __init__(self, cache: Cache):
        self.is_first = not cache
        self.old, self.new = list(cache), []

    def extend(
        self, x: Float[Array, "B T H W D"], num_past: int, *, after_zeros: bool = False
    ) -> Float[Array, "B T2 H W D"]:
        """`x` with the `num_past` frames before it. Before a video's first frame lie copies of that frame, or zeros."""
        if self.is_first:
            shape = (x.shape[0], num_past, *x.shape[2:])
            past = jnp.zeros(shape, x.dtype) if after_zeros else jnp.repeat(x[:, :1], num_past, axis=1)
        else:
            past = self.old.pop(0)
        extended = jnp.concatenate([past, x], axis=1)
        self.new.append(extended[:, -num_past:])
        return extended


class TemporalConv(nnx.Module):
    """A causal convolution over three frames, as a sum of matrix products."""

    taps = 3

    def __init__(self, width: int, dtype: str, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jnp.zeros((self.taps, width, width)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.dtype = DTYPES[dtype]

    def __call__(self, x: Float[Array, "B T H W D"], stream: Stream) -> Float[Array, "B T H W D"]:
        num_frames = x.shape[1]
        x, kernel = stream.extend(x, self.taps - 1), self.kernel[...].astype(self.dtype)
        terms = (jnp.dot(x[:, i : i + num_frames], kernel[i]) for i in range(self.taps))
        return sum(terms, self.bias[...].astype(self.dtype))  # type: ignore[call-overload]


class SpatialConv(nnx.Module):
    """A 3x3 convolution of every frame."""

    def __init__(self, width_in: int, width_out: int, dtype: str, rngs: nnx.Rngs):
        self.conv = nnx.Conv(width_in, width_out, (3, 3), dtype=DTYPES[dtype], rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W D"]) -> Float[Array, "B T H W E"]:
        return self.conv(x.reshape(-1, *x.shape[2:])).reshape(*x.shape[:-1], -1)


class ResidualBlock(nnx.Module):
    """Norm, 3x3 within each frame, norm, three taps over time; the last starts at zero."""

    def __init__(self, width: int, dtype: str, rngs: nnx.Rngs):
        self.norm_space, self.norm_time = RMSNorm(width), RMSNorm(width)
        self.space = SpatialConv(width, width, dtype, rngs)
        self.time = TemporalConv(width, dtype, rngs)

    def __call__(self, x: Float[Array, "B T H W D"], stream: Stream) -> Float[Array, "B T H W D"]:
        h = self.space(jax.nn.silu(self.norm_space(x)))
        return x + self.time(jax.nn.silu(self.norm_time(h)), stream)


def residual_blocks(stage: Stage, dtype: str, rngs: nnx.Rngs) -> nnx.Dict:
    """The blocks of one stage by name (checkpoints keep names, not positions)."""
    return nnx.Dict({f"block_{j}": ResidualBlock(stage.width, dtype, rngs) for j in range(stage.num_blocks)})


class Encoder(nnx.Module):
    """Video in [-1, 1] → mean and log-variance of the latents."""

    def __init__(self, cfg: AutoencoderConfig, rngs: nnx.Rngs):
        kind, width = DTYPES[cfg.dtype], 3 * cfg.patch_size**2
        self.down, self.blocks = nnx.Dict(), nnx.Dict()
        for i, stage in enumerate(cfg.stages):
            linear = nnx.Linear(width * stage.space**2 * stage.time, stage.width, dtype=kind, rngs=rngs)
            self.down[f"stage_{i}"] = linear
            self.blocks[f"stage_{i}"] = residual_blocks(stage, cfg.dtype, rngs)
            width = stage.width
        if cfg.norm_latents:
            self.norm = RMSNorm(width)
        self.latents_out = nnx.Linear(width, 2 * cfg.latent_channels, dtype=kind, rngs=rngs)
        self.cfg = cfg

    def __call__(self, video: Float[Array, "B T Y X 3"], cache: Cache) -> tuple[Posterior, Cache]:
        stream = Stream(cache)
        x = space_to_depth(video.astype(DTYPES[self.cfg.dtype]), self.cfg.patch_size)
        for i, stage in enumerate(self.cfg.stages):
            x = frames_to_depth(x, stage.time, stream.is_first)
            x = constrain(self.down[f"stage_{i}"](space_to_depth(x, stage.space)), *ACTIVATION)
            for j in range(stage.num_blocks):
                x = self.blocks[f"stage_{i}"][f"block_{j}"](x, stream)
        x = self.norm(x) if self.cfg.norm_latents else x
        mean, log_variance = jnp.split(self.latents_out(x).astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0)), stream.new


class Decoder(nnx.Module):
    """Latents → video in [-1, 1], the encoder's mirror image."""

    def __init__(self, cfg: AutoencoderConfig, rngs: nnx.Rngs):
        kind = DTYPES[cfg.dtype]
        self.latents_in = nnx.Linear(cfg.latent_channels, cfg.stages[-1].width, dtype=kind, rngs=rngs)
        self.up, self.blocks = nnx.Dict(), nnx.Dict()
        widths = (3 * cfg.patch_size**2, *(stage.width for stage in cfg.stages))
        for i, stage in enumerate(cfg.stages):
            linear = nnx.Linear(stage.width, widths[i] * stage.space**2 * stage.time, dtype=kind, rngs=rngs)
            self.up[f"stage_{i}"] = linear
            self.blocks[f"stage_{i}"] = residual_blocks(stage, cfg.dtype, rngs)
        self.cfg = cfg

    def __call__(self, latents: Float[Array, "B F H W C"], cache: Cache) -> tuple[Float[Array, "B T Y X 3"], Cache]:
        stream = Stream(cache)
        x = self.latents_in(latents.astype(DTYPES[self.cfg.dtype]))
        for i, stage in reversed(list(enumerate(self.cfg.stages))):
            x = constrain(x, *ACTIVATION)
            for j in range(stage.num_blocks):
                x = self.blocks[f"stage_{i}"][f"block_{j}"](x, stream)
            x = depth_to_space(self.up[f"stage_{i}"](x), stage.space)
            x = depth_to_frames(x, stage.time, stream.is_first)
        return depth_to_space(x, self.cfg.patch_size).astype(jnp.float32), stream.new


class VideoAutoencoder(nnx.Module):
    """Encoder and decoder. Pass the returned cache with the next chunk; `[]` starts a video.

    The first chunk has `1 + c n` frames (`1 + n` latents), every later one `c n` frames (`n` latents).
    """

    def __init__(self, cfg: AutoencoderConfig, rngs: nnx.Rngs):
        self.encoder, self.decoder, self.cfg = Encoder(cfg, rngs), Decoder(cfg, rngs), cfg

    def encode(self, video: Float[Array, "B T Y X 3"], cache: Cache) -> tuple[Posterior, Cache]:
        return self.encoder(video, cache)

    def decode(self, latents: Float[Array, "B F H W C"], cache: Cache) -> tuple[Float[Array, "B T Y X 3"], Cache]:
        return self.decoder(latents, cache)


def space_to_depth(x: Float[Array, "B T Y X D"], r: int) -> Float[Array, "B T Y2 X2 E"]:
    """Each `r` x `r` square of positions becomes one position with `r * r * D` channels."""
    b, t, y, z, d = x.shape
    x = x.reshape(b, t, y // r, r, z // r, r, d)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, y // r, z // r, r * r * d)


def depth_to_space(x: Float[Array, "B T Y X D"], r: int) -> Float[Array, "B T Y2 X2 E"]:
    """The inverse of `space_to_depth`."""
    b, t, y, z, d = x.shape
    x = x.reshape(b, t, y, z, r, r, d // (r * r))
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, y * r, z * r, d // (r * r))


def frames_to_depth(x: Float[Array, "B T Y X D"], r: int, is_first: bool) -> Float[Array, "B T2 Y X E"]:
    """Each `r` frames become one with `r * D` channels; a video's first frame is repeated to make up the first `r`."""
    if r == 1:
        return x
    if is_first:
        x = jnp.concatenate([jnp.repeat(x[:, :1], r - 1, axis=1), x], axis=1)
    b, t, y, z, d = x.shape
    return x.reshape(b, t // r, r, y, z, d).transpose(0, 1, 3, 4, 2, 5).reshape(b, t // r, y, z, r * d)


def depth_to_frames(x: Float[Array, "B T Y X D"], r: int, is_first: bool) -> Float[Array, "B T2 Y X E"]:
    """The inverse of `frames_to_depth`: of a video's first `r` frames only the last is kept."""
    if r == 1:
        return x
    b, t, y, z, d = x.shape
    x = x.reshape(b, t, y, z, r, d // r).transpose(0, 1, 4, 2, 3, 5).reshape(b, t * r, y, z, d // r)
    return x[:, r - 1 :] if is_first else x


def forward_flops(cfg: AutoencoderConfig, num_frames: int, height: int, width: int) -> float:
    """FLOPs of encoding and decoding one video, forward, by the conventions of `flops.py`."""
    frames, area = float(num_frames), height * width / cfg.patch_size**2
    total, width_in = 0.0, 3 * cfg.patch_size**2
    for stage in cfg.stages:
        frames, area = 1 + (frames - 1) / stage.time, area / stage.space**2
        total += 2 * flops.linear(frames * area, width_in * stage.space**2 * stage.time, stage.width)
        total += 2 * stage.num_blocks * flops.linear(frames * area, 12 * stage.width, stage.width)
        width_in = stage.width
    return total + flops.linear(frames * area, width_in, 3 * cfg.latent_channels)
