"""Wan 2.1's causal 3D VAE (Wan Team 2025, section 4.1), so that its published weights run here: 4x8x8, 16 channels.

Every parameter has the path that diffusers' AutoencoderKLWan names it by (`wan_files.py`). Unlike in our own
autoencoder, zeros lie before a video's first frame, and resampling in time leaves that frame alone: of `1 + 2n` frames
it makes `1 + n`, the first unchanged, and back. Chunks are exact all the same, because nothing looks ahead. Attention
is within a frame. A 3x3x3 kernel is a 2D one over three frames' channels: on CPU XLA's 3D convolutions are several
times slower, and the sum of three 2D ones up to twice.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipeline.errors import UserError
from sora_jax.models.attention import attention
from sora_jax.models.autoencoder import Cache, Compression, Posterior, Stream, depth_to_frames
from sora_jax.models.layers import DTYPES

TAPS = 3
"""Positions of every kernel, in time and space."""
LAYOUT = ("NHWC", "HWIO", "NHWC")
WHOLE_LOGITS = 16384
"""Up to so many positions (1280x720 pixels have 14,400) a frame's logits are made at once, at most 1 GiB; beyond them
in blocks. The GPU's and the TPU's kernels are for many narrow heads: a tile of this one, 384 wide, is too large."""


@dataclass(frozen=True)
class WanConfig(Compression):
    """The defaults are the published Wan 2.1. `widths` multiply `base_width`, from the finest scale to the coarsest;
    between two scales height and width halve, and the frames where `time` says so."""

    base_width: int = 96
    latent_channels: int = 16
    widths: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: int = 2
    time: tuple[bool, ...] = (False, True, True)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.time) != len(self.widths) - 1:
            raise UserError(f"Wan's {len(self.widths)} widths have {len(self.widths) - 1} steps, not {len(self.time)}")

    @property
    def spatial_compression(self) -> int:
        return 2 ** len(self.time)

    @property
    def temporal_compression(self) -> int:
        return 2 ** sum(self.time)

    @property
    def spatial_reach(self) -> int:
        """Pixels that the convolutions of the decoder, which sees farther than the encoder, reach. Its attention and
        the encoder's see the whole frame, so that tiles are an approximation."""
        scale = self.spatial_compression
        reach = scale * (1 + 4 + 2 * (self.num_blocks + 1))  # conv_in, two blocks in the middle, those of the scale
        for _ in self.time:
            scale //= 2
            reach += scale * (1 + 2 * (self.num_blocks + 1))
        return reach + 1

    @property
    def chunk_latents(self) -> int:
        """One, as in Wan's own code: an activation of its four frames has 613 MB at 832x480 already."""
        return 1


class CausalConv(nnx.Module):
    """3x3x3, causal in time: a 2D convolution of each frame with the two before it as further channels."""

    def __init__(self, width_in: int, width_out: int, dtype: str, rngs: nnx.Rngs):
        shape = (TAPS, TAPS, TAPS, width_in, width_out)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((width_out,)))
        self.dtype = DTYPES[dtype]

    def __call__(self, x: Float[Array, "B T H W D"], stream: Stream) -> Float[Array, "B T H W E"]:
        num_frames, kernel = x.shape[1], self.kernel[...].astype(self.dtype)
        x = stream.extend(x, TAPS - 1, after_zeros=True)
        x = jnp.concatenate([x[:, i : i + num_frames] for i in range(TAPS)], axis=-1)
        kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(TAPS, TAPS, x.shape[-1], -1)
        convolve = functools.partial(jax.lax.conv_general_dilated, rhs=kernel, window_strides=(1, 1), padding="SAME")
        return each_frame(lambda y: convolve(y, dimension_numbers=LAYOUT), x) + self.bias[...].astype(self.dtype)


class TimeConv(nnx.Module):
    """Three taps over frames, without padding, as matrix products."""

    def __init__(self, width_in: int, width_out: int, dtype: str, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (TAPS, width_in, width_out)))
        self.bias = nnx.Param(jnp.zeros((width_out,)))
        self.dtype = DTYPES[dtype]

    def __call__(self, x: Float[Array, "B T H W D"], stride: int = 1) -> Float[Array, "B T2 H W E"]:
        count, kernel = max(0, (x.shape[1] - TAPS) // stride + 1), self.kernel[...].astype(self.dtype)
        terms = (jnp.dot(x[:, i : i + stride * count : stride], kernel[i]) for i in range(TAPS))
        return sum(terms, self.bias[...].astype(self.dtype))  # type: ignore[call-overload]


class Norm(nnx.Module):
    """Every position's channels scaled to the length sqrt(D), times gamma, in float32."""

    def __init__(self, width: int):
        self.gamma = nnx.Param(jnp.ones((width,)))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(jnp.square(x32), axis=-1, keepdims=True))
        return (x32 / jnp.maximum(length, 1e-12) * x.shape[-1] ** 0.5 * self.gamma[...]).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """Twice norm, SiLU and a causal convolution, beside a shortcut that is a matrix where the width changes."""

    def __init__(self, width_in: int, width_out: int, dtype: str, rngs: nnx.Rngs):
        self.norm1, self.norm2 = Norm(width_in), Norm(width_out)
        self.conv1 = CausalConv(width_in, width_out, dtype, rngs)
        self.conv2 = CausalConv(width_out, width_out, dtype, rngs)
        same, kind = width_in == width_out, DTYPES[dtype]
        self.conv_shortcut = None if same else nnx.Linear(width_in, width_out, dtype=kind, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W D"], stream: Stream) -> Float[Array, "B T H W E"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)), stream)
        h = self.conv2(jax.nn.silu(self.norm2(h)), stream)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class FrameAttention(nnx.Module):
    """One head over all positions of a frame."""

    def __init__(self, width: int, dtype: str, rngs: nnx.Rngs):
        self.norm = Norm(width)
        self.to_qkv = nnx.Linear(width, 3 * width, dtype=DTYPES[dtype], rngs=rngs)
        self.proj = nnx.Linear(width, width, dtype=DTYPES[dtype], rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W D"]) -> Float[Array, "B T H W D"]:
        b, t, y, z, d = x.shape
        q, k, v = jnp.split(self.to_qkv(self.norm(x)).reshape(b * t, y * z, 1, 3 * d), 3, axis=-1)
        ids, kernel = jnp.ones((b * t, y * z), jnp.int32), "reference" if y * z <= WHOLE_LOGITS else "blockwise"
        return x + self.proj(attention(q, k, v, ids, ids, kernel).reshape(x.shape))


class MidBlock(nnx.Module):
    """Residual, attention, residual."""

    def __init__(self, width: int, dtype: str, rngs: nnx.Rngs):
        self.resnets = numbered([ResidualBlock(width, width, dtype, rngs) for _ in range(2)])
        self.attentions = numbered([FrameAttention(width, dtype, rngs)])

    def __call__(self, x: Float[Array, "B T H W D"], stream: Stream) -> Float[Array, "B T H W D"]:
        return self.resnets["1"](self.attentions["0"](self.resnets["0"](x, stream)), stream)


class Downsample(nnx.Module):
    """Half the height and width; with `time` also `1 + 2n` frames to `1 + n`, the first as it is."""

    def __init__(self, width: int, time: bool, dtype: str, rngs: nnx.Rngs):
        options = dict(strides=(2, 2), padding=((0, 1), (0, 1)), dtype=DTYPES[dtype], rngs=rngs)
        self.resample = nnx.Conv(width, width, (TAPS, TAPS), **options)
        self.time_conv = TimeConv(width, width, dtype, rngs) if time else None

    def __call__(self, x: Float[Array, "B T H W D"], stream: Stream) -> Float[Array, "B T2 H2 W2 D"]:
        x = each_frame(self.resample, x)
        if self.time_conv is None:
            return x
        extended = stream.extend(x, 1, after_zeros=True)
        if stream.is_first:
            return jnp.concatenate([x[:, :1], self.time_conv(extended[:, 1:], 2)], axis=1)
        return self.time_conv(extended, 2)


class Upsample(nnx.Module):
    """Twice the height and width and half the channels; with `time` also `1 + n` frames to `1 + 2n`."""

    def __init__(self, width: int, time: bool, dtype: str, rngs: nnx.Rngs):
        self.resample = nnx.Conv(width, width // 2, (TAPS, TAPS), dtype=DTYPES[dtype], rngs=rngs)
        self.time_conv = TimeConv(width, 2 * width, dtype, rngs) if time else None

    def __call__(self, x: Float[Array, "B T H W D"], stream: Stream) -> Float[Array, "B T2 H2 W2 E"]:
        if self.time_conv is not None:
            # The first frame takes no part, not even as the past of the second: that one follows zeros.
            first, rest = jnp.split(x, [1 if stream.is_first else 0], axis=1)
            pairs = self.time_conv(stream.extend(rest, TAPS - 1, after_zeros=True))
            x = jnp.concatenate([first, depth_to_frames(pairs, 2, is_first=False)], axis=1)
        return each_frame(self.resample, jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3))


class Encoder(nnx.Module):
    """Video in [-1, 1] → twice the latent channels."""

    def __init__(self, cfg: WanConfig, rngs: nnx.Rngs):
        widths = [cfg.base_width * n for n in (1, *cfg.widths)]
        blocks: list[nnx.Module] = []
        for i, (width_in, width) in enumerate(itertools.pairwise(widths)):
            for j in range(cfg.num_blocks):
                blocks.append(ResidualBlock(width if j else width_in, width, cfg.dtype, rngs))
            if i < len(cfg.time):
                blocks.append(Downsample(width, cfg.time[i], cfg.dtype, rngs))
        self.conv_in = CausalConv(3, widths[0], cfg.dtype, rngs)
        self.down_blocks = numbered(blocks)
        self.mid_block = MidBlock(widths[-1], cfg.dtype, rngs)
        self.norm_out = Norm(widths[-1])
        self.conv_out = CausalConv(widths[-1], 2 * cfg.latent_channels, cfg.dtype, rngs)

    def __call__(self, x: Float[Array, "B T Y X 3"], stream: Stream) -> Float[Array, "B F H W E"]:
        x = self.conv_in(x, stream)
        for i in range(len(self.down_blocks)):
            x = self.down_blocks[str(i)](x, stream)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid_block(x, stream))), stream)


class UpBlock(nnx.Module):
    """Residual blocks, one more than in the encoder, then `upsample` unless it is None."""

    def __init__(self, width_in: int, width: int, upsample: Upsample | None, cfg: WanConfig, rngs: nnx.Rngs):
        widths = [width_in, *[width] * (cfg.num_blocks + 1)]
        self.resnets = numbered([ResidualBlock(a, b, cfg.dtype, rngs) for a, b in itertools.pairwise(widths)])
        self.upsamplers = numbered([upsample] if upsample else [])

    def __call__(self, x: Float[Array, "B T H W D"], stream: Stream) -> Float[Array, "B T2 H2 W2 E"]:
        for part in (self.resnets, self.upsamplers):
            for i in range(len(part)):
                x = part[str(i)](x, stream)
        return x


class Decoder(nnx.Module):
    """Latents → video in [-1, 1]."""

    def __init__(self, cfg: WanConfig, rngs: nnx.Rngs):
        widths, times = [cfg.base_width * n for n in reversed(cfg.widths)], (*reversed(cfg.time), None)
        blocks, width_in = [], widths[0]
        for width, time in zip(widths, times, strict=True):
            upsample = None if time is None else Upsample(width, time, cfg.dtype, rngs)
            blocks.append(UpBlock(width_in, width, upsample, cfg, rngs))
            width_in = width // 2
        self.conv_in = CausalConv(cfg.latent_channels, widths[0], cfg.dtype, rngs)
        self.mid_block = MidBlock(widths[0], cfg.dtype, rngs)
        self.up_blocks = numbered(blocks)
        self.norm_out = Norm(widths[-1])
        self.conv_out = CausalConv(widths[-1], 3, cfg.dtype, rngs)

    def __call__(self, x: Float[Array, "B F H W C"], stream: Stream) -> Float[Array, "B T Y X 3"]:
        x = self.mid_block(self.conv_in(x, stream), stream)
        for i in range(len(self.up_blocks)):
            x = self.up_blocks[str(i)](x, stream)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), stream)


class WanAutoencoder(nnx.Module):
    """Encoder and decoder, used as `VideoAutoencoder` is: pass the returned cache with the next chunk."""

    def __init__(self, cfg: WanConfig, rngs: nnx.Rngs):
        channels, kind = cfg.latent_channels, DTYPES[cfg.dtype]
        self.encoder, self.decoder = Encoder(cfg, rngs), Decoder(cfg, rngs)
        self.quant_conv = nnx.Linear(2 * channels, 2 * channels, dtype=kind, rngs=rngs)
        self.post_quant_conv = nnx.Linear(channels, channels, dtype=kind, rngs=rngs)
        self.dtype = kind

    def encode(self, video: Float[Array, "B T Y X 3"], cache: Cache) -> tuple[Posterior, Cache]:
        stream = Stream(cache)
        values = self.quant_conv(self.encoder(video.astype(self.dtype), stream)).astype(jnp.float32)
        mean, log_variance = jnp.split(values, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0)), stream.new

    def decode(self, latents: Float[Array, "B F H W C"], cache: Cache) -> tuple[Float[Array, "B T Y X 3"], Cache]:
        stream = Stream(cache)
        video = self.decoder(self.post_quant_conv(latents.astype(self.dtype)), stream)
        return jnp.clip(video.astype(jnp.float32), -1.0, 1.0), stream.new


def numbered(modules: list[nnx.Module]) -> nnx.Dict:
    """The modules by their place, as text: paths are keys of safetensors."""
    return nnx.Dict({str(i): module for i, module in enumerate(modules)})


def each_frame(fn: Callable[[jax.Array], jax.Array], x: Float[Array, "B T H W D"]) -> Float[Array, "B T H2 W2 E"]:
    """`fn` of every frame on its own, `[N, H, W, D]` at once."""
    y = fn(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])
