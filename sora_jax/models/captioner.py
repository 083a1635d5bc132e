"""The video captioner: CoCa (Yu et al. 2022, arXiv 2205.01917) with a space-time encoder.

A transformer over patches of the whole clip; attentional pooling into a memory of a fixed number of tokens, and of
these into one vector; a text decoder whose first blocks know only the text and whose last attend to the memory. A
class token behind the text, seen by nothing, gives the text's vector after the first blocks. Both vectors are of
length 1: clips and captions that belong together should point the same way.

Any number and size of frames will do: positions are rotary and added as features, and what a clip leaves of its canvas
is no token. They count frames as they are shown here: how fast the clip plays is not known.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from data_pipeline.errors import UserError
from sora_jax import flops
from sora_jax.models import text_decoder
from sora_jax.models.attention import KERNELS, SelfAttention
from sora_jax.models.codec import to_float
from sora_jax.models.dit import POSITION_FEATURES, position_features
from sora_jax.models.layers import DTYPES, REMAT_POLICIES, RMSNorm, definition, scan_blocks, stack
from sora_jax.models.rope import Angles, rotary_3d
from sora_jax.models.text_decoder import Generated, Memory, MemoryAttention, TextDecoder, TextDecoderConfig, generate
from sora_jax.parallel import constrain

FIRST_TEMPERATURE = 0.07
MAX_SCALE = 100.0
"""Radford et al. 2021 (CLIP): where the contrastive temperature starts, and 1 / the least that it may become."""


@dataclass(frozen=True)
class CaptionerConfig:
    """`patch`: (frames, height, width) of a video token. `stem`: channels of convolutions before that, each of which
    halves the frames' sides; (): patches of pixels. `width`, `depth`, `num_heads` are the video encoder's,
    `text_…` the decoder's, of whose `text_depth` blocks the last `cross_depth` attend to `num_memory` tokens of the
    clip; `vector_width` values hold a clip or a caption for the contrastive loss."""

    vocab_size: int
    patch: tuple[int, int, int] = (3, 8, 8)
    stem: tuple[int, ...] = ()
    width: int = 256
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: int = 4
    num_memory: int = 32
    text_width: int = 256
    text_depth: int = 4
    cross_depth: int = 2
    text_heads: int = 4
    vector_width: int = 128
    rope_theta: float = 10_000.0
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self) -> None:
        if self.width % (2 * self.num_heads) or self.width // self.num_heads < 6:
            raise UserError(
                f"the captioner's width={self.width} over num_heads={self.num_heads} must give an even head width of 6 "
                "or more"
            )
        if not 1 <= self.cross_depth < self.text_depth:
            raise UserError(
                f"the captioner's cross_depth={self.cross_depth} must be at least 1 and below text_depth="
                f"{self.text_depth}: the first blocks know only the text"
            )
        for name in ("depth", "num_memory", "vector_width"):
            if getattr(self, name) < 1:
                raise UserError(f"the captioner's {name} is {getattr(self, name)}, but must be at least 1")
        halved = 2 ** len(self.stem)
        if min(self.patch) < 1 or self.patch[1] % halved or self.patch[2] % halved or min((1, *self.stem)) < 1:
            raise UserError(
                f"the captioner's patch is {self.patch}, but must be at least 1 in each dim, and its sides multiples "
                f"of {halved} for the stem {self.stem}"
            )
        for name, value, valid in (
            ("attention_kernel", self.attention_kernel, ("auto", *KERNELS)),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("remat", self.remat, tuple(REMAT_POLICIES)),
        ):
            if value not in valid:
                raise UserError(f"the captioner's {name} is '{value}', which is none of {', '.join(valid)}")
        _ = self.text

    @property
    def text(self) -> TextDecoderConfig:
        """The decoder's."""
        sizes = (self.vocab_size, self.text_width, self.text_depth, self.text_heads, self.mlp_ratio)
        return TextDecoderConfig(*sizes, cross_depth=self.cross_depth, memory_width=self.width)

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches of a canvas. Raises UserError for one that does not divide."""
        canvas = (num_frames, height, width)
        if any(size % part for size, part in zip(canvas, self.patch, strict=True)):
            raise UserError(
                f"a canvas of {num_frames} frames of {width}x{height} does not divide into the captioner's patches of "
                f"{self.patch[0]} frames of {self.patch[2]}x{self.patch[1]}: change config.data.canvas or "
                "config.model.patch"
            )
        return tuple(size // part for size, part in zip(canvas, self.patch, strict=True))  # type: ignore[return-value]


class Seen(NamedTuple):
    """What the captioner sees in clips: a memory to write captions from, and a unit vector each."""

    memory: Memory
    vectors: Float[Array, "B V"]


class Coca(NamedTuple):
    """The logits of each following token `[B, S, V]`, and the unit vectors of clips and captions."""

    logits: Float[Array, "B S V"]
    clips: Float[Array, "B W"]
    captions: Float[Array, "B W"]


class Stem(nnx.Module):
    """Convolutions of every frame, each of which halves its sides: they find what is smaller than a patch sooner than
    linear patches do (Xiao et al. 2021, arXiv 2106.14881). What lies outside of a clip stays 0."""

    def __init__(self, cfg: CaptionerConfig, rngs: nnx.Rngs):
        kind, widths = DTYPES[cfg.dtype], (3, *cfg.stem)
        pairs = [(f"conv_{i}", widths[i], widths[i + 1]) for i in range(len(cfg.stem))]
        self.convs = nnx.Dict({n: nnx.Conv(a, b, (3, 3), strides=2, dtype=kind, rngs=rngs) for n, a, b in pairs})
        self.norms = nnx.Dict({name: RMSNorm(width) for name, _, width in pairs})

    def __call__(
        self, x: Float[Array, "B T Y X 3"], extents: Int[Array, "B 3"]
    ) -> tuple[Float[Array, "B T Y2 X2 C"], Int[Array, "B 3"]]:
        x = within(x, extents)
        for i in range(len(self.convs)):
            frames = self.convs[f"conv_{i}"](x.reshape(-1, *x.shape[2:]))
            x = jax.nn.gelu(self.norms[f"conv_{i}"](frames)).reshape(*x.shape[:2], *frames.shape[1:])
            extents = -(-extents // jnp.asarray((1, 2, 2)))
            x = constrain(within(x, extents), "row", None, None, None, None)
        return x, extents


class VideoBlock(nnx.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, cfg: CaptionerConfig, rngs: nnx.Rngs):
        kind = DTYPES[cfg.dtype]
        self.norm_attention = RMSNorm(cfg.width)
        self.attention = SelfAttention(cfg.width, cfg.num_heads, cfg.dtype, rngs, cfg.attention_kernel)
        self.norm_mlp = RMSNorm(cfg.width)
        self.mlp_in = nnx.Linear(cfg.width, cfg.width * cfg.mlp_ratio, dtype=kind, rngs=rngs)
        self.mlp_out = nnx.Linear(cfg.width * cfg.mlp_ratio, cfg.width, dtype=kind, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L D"], segment_ids: Int[Array, "B L"], angles: Angles
    ) -> Float[Array, "B L D"]:
        x = x + self.attention(self.norm_attention(x), segment_ids, angles)
        h = constrain(jax.nn.gelu(self.mlp_in(self.norm_mlp(x))), "row", "token", "mlp")
        return constrain(x + self.mlp_out(h), "row", "token", None)


class VideoEncoder(nnx.Module):
    """Clips on a canvas → features of their patches, padding last, and which are no padding."""

    def __init__(self, cfg: CaptionerConfig, rngs: nnx.Rngs):
        kind = DTYPES[cfg.dtype]
        self.stem = Stem(cfg, rngs)
        self.patch_in = nnx.Linear(patch_values(cfg), cfg.width, dtype=kind, rngs=rngs)
        self.position_in = nnx.Linear(3 * POSITION_FEATURES, cfg.width, dtype=kind, rngs=rngs)
        self.blocks = stack(lambda rngs: VideoBlock(cfg, rngs), cfg.depth, rngs)
        self.norm = RMSNorm(cfg.width)
        self.cfg = cfg

    def __call__(self, video: UInt8[Array, "B T Y X 3"], extents: Int[Array, "B 3"]) -> Memory:
        cfg = self.cfg
        kind, halved = DTYPES[cfg.dtype], 2 ** len(cfg.stem)
        x, extents = self.stem(to_float(video).astype(kind), extents)
        patch = (cfg.patch[0], cfg.patch[1] // halved, cfg.patch[2] // halved)
        patches, positions, segment_ids = patchify(x, extents, patch)
        x = self.patch_in(patches) + self.position_in(position_features(positions).astype(kind))
        x = constrain(x, "row", "token", None)
        angles = rotary_3d(positions, cfg.width // cfg.num_heads, cfg.rope_theta)
        return Memory(self.norm(scan_blocks(self.blocks, x, cfg.remat, segment_ids, angles)), segment_ids)


class AttentionPool(nnx.Module):
    """A fixed number of learned queries that attend to a memory (Lee et al. 2019, arXiv 1810.00825)."""

    def __init__(self, cfg: CaptionerConfig, num_queries: int, rngs: nnx.Rngs):
        self.query_table = nnx.Param(jax.random.normal(rngs.params(), (num_queries, cfg.width)))
        self.pool = MemoryAttention(cfg.width, cfg.width, cfg.num_heads, cfg.dtype, rngs)
        self.norm = RMSNorm(cfg.width)
        self.dtype = cfg.dtype

    def __call__(self, memory: Memory) -> Memory:
        num_rows, table = len(memory.values), self.query_table[...].astype(DTYPES[self.dtype])
        queries = jnp.broadcast_to(table, (num_rows, *table.shape))
        pooled = self.norm(self.pool(queries, *self.pool.project(memory.values), memory.segment_ids))
        return Memory(pooled, jnp.ones(pooled.shape[:2], jnp.int32))


class Captioner(nnx.Module):
    """Clips and captions → logits and vectors; clips alone → captions."""

    def __init__(self, cfg: CaptionerConfig, rngs: nnx.Rngs):
        kind = DTYPES[cfg.dtype]
        self.video = VideoEncoder(cfg, rngs)
        self.pool_memory = AttentionPool(cfg, cfg.num_memory, rngs)
        self.pool_vector = AttentionPool(cfg, 1, rngs)
        self.text = TextDecoder(cfg.text, cfg.dtype, rngs, cfg.remat)
        self.class_table = nnx.Param(jax.random.normal(rngs.params(), (1, 1, cfg.text_width)))
        self.norm_class = RMSNorm(cfg.text_width)
        self.video_vector_out = nnx.Linear(cfg.width, cfg.vector_width, use_bias=False, dtype=kind, rngs=rngs)
        self.text_vector_out = nnx.Linear(cfg.text_width, cfg.vector_width, use_bias=False, dtype=kind, rngs=rngs)
        self.log_scale = nnx.Param(jnp.asarray(np.log(1 / FIRST_TEMPERATURE), jnp.float32))
        self.cfg = cfg

    def __call__(
        self,
        video: UInt8[Array, "B T Y X 3"],
        extents: Int[Array, "B 3"],
        ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
    ) -> Coca:
        """`ids` start with the end-of-text id; `segment_ids` are 1 for a row's text, 0 behind it."""
        seen = self.see(video, extents)
        x = self.text.embed(ids)
        token = jnp.broadcast_to(self.class_table[...].astype(x.dtype), (len(x), 1, x.shape[2]))
        with_class = jnp.pad(segment_ids, ((0, 0), (0, 1)), constant_values=1)
        h = self.text.plain(jnp.concatenate([x, token], axis=1), with_class)
        captions = unit(self.text_vector_out(self.norm_class(h[:, -1])))
        return Coca(self.text.logits(self.text.cross(h[:, :-1], segment_ids, seen.memory)), seen.vectors, captions)

    def see(self, video: UInt8[Array, "B T Y X 3"], extents: Int[Array, "B 3"]) -> Seen:
        """`extents`: (frames, height, width) of each clip on its canvas, where it lies first, top and left."""
        memory = self.pool_memory(self.video(video, extents))
        pooled = self.pool_vector(memory).values[:, 0]
        return Seen(memory, unit(self.video_vector_out(pooled)))

    def caption(
        self, video: UInt8[Array, "B T Y X 3"], extents: Int[Array, "B 3"], max_tokens: int, end_id: int
    ) -> Generated:
        """The likeliest caption of each clip, token by token."""
        prompts, lengths = jnp.full((len(video), 1), end_id, jnp.int32), jnp.ones(len(video), jnp.int32)
        return generate(self.text, prompts, lengths, self.see(video, extents).memory, max_tokens, end_id)

    def scale(self) -> Float[Array, ""]:
        """1 / the contrastive temperature; at its limit it keeps its gradient, or it could never come back."""
        log = self.log_scale[...]
        return jnp.exp(log - jax.lax.stop_gradient(jnp.maximum(log - np.float32(np.log(MAX_SCALE)), 0.0)))


def apply(cfg: CaptionerConfig, params: dict[str, Any]) -> Captioner:
    """The module with these parameters."""
    return nnx.merge(definition(lambda rngs: Captioner(cfg, rngs)), params)


def patch_values(cfg: CaptionerConfig) -> int:
    """P: what the stem makes of a patch."""
    return (3, *cfg.stem)[-1] * int(np.prod(cfg.patch)) // 4 ** len(cfg.stem)


def within(x: Float[Array, "B T Y X D"], extents: Int[Array, "B 3"]) -> Float[Array, "B T Y X D"]:
    """`x` of the clips, 0 outside of them."""
    inside = [jnp.arange(n) < extents[:, i, None] for i, n in enumerate(x.shape[1:4])]
    mask = inside[0][:, :, None, None] & inside[1][:, None, :, None] & inside[2][:, None, None, :]
    return jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def patchify(
    x: Float[Array, "B T Y X D"], extents: Int[Array, "B 3"], patch: tuple[int, int, int]
) -> tuple[Float[Array, "B L P"], Float[Array, "B L 3"], Int[Array, "B L"]]:
    """The patches, their (time, row, column), and 1 for those of the clip: those outside come last, as attention wants
    its padding."""
    b, t, y, z, d = x.shape
    grid = tuple(n // p for n, p in zip((t, y, z), patch, strict=True))
    x = x.reshape(b, grid[0], patch[0], grid[1], patch[1], grid[2], patch[2], d)
    patches = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, d * patch[0] * patch[1] * patch[2])
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, grid), indexing="ij"), axis=-1).reshape(-1, 3)
    live = (places * jnp.asarray(patch) < extents[:, None]).all(-1)
    order = jnp.argsort(~live, axis=1, stable=True)
    positions = jnp.take(places, order, axis=0).astype(jnp.float32)
    patches = jnp.take_along_axis(patches, order[..., None], axis=1)
    return patches, positions, jnp.take_along_axis(live, order, axis=1).astype(jnp.int32)


def unit(x: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """Of length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def forward_flops(cfg: CaptionerConfig, num_frames: int, height: int, width: int, num_tokens: int) -> float:
    """FLOPs of a forward pass over one clip of this size and a caption, by the conventions of `flops.py`."""
    tokens, d = int(np.prod(cfg.grid(num_frames, height, width))), cfg.width
    block = flops.linear(tokens, d, 4 * d + 2 * d * cfg.mlp_ratio) + flops.attention([tokens], [tokens], d)
    video = flops.linear(tokens, patch_values(cfg) + 3 * POSITION_FEATURES, d) + cfg.depth * block
    for i, (before, after) in enumerate(zip((3, *cfg.stem), cfg.stem, strict=False)):
        video += flops.linear(num_frames * height * width / 4 ** (i + 1), 9 * before, after)
    pools = flops.linear(tokens + cfg.num_memory, d, 2 * d) + flops.linear(cfg.num_memory + 1, d, 2 * d)
    pools += flops.attention([cfg.num_memory, 1], [tokens, cfg.num_memory], d)
    return video + pools + text_decoder.forward_flops(cfg.text, num_tokens, cfg.num_memory)
