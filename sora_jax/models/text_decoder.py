"""An autoregressive text decoder: causal blocks, of which the last may attend to a memory, and generation with a cache.

Pre-norm blocks with rotary positions, as in `text_encoder.py`; the output shares the embedding's weights. There are two
ways through the blocks, which give the same logits: a whole text at once, for training, and a few tokens at a time with
the keys and values of those before them. A text starts with the end-of-text id, which stands for its beginning too.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from data_pipeline.errors import UserError
from sora_jax import flops
from sora_jax.models.attention import CrossAttention, SelfAttention, attention
from sora_jax.models.layers import DTYPES, RMSNorm, scan_blocks, stack
from sora_jax.models.rope import Angles, rotary_1d, rotate
from sora_jax.parallel import constrain

THETA = 10_000.0
TEXT = ("text", "text")
"""The logical dims of queries and keys: texts are short, and whole on every device."""
NO_MEMORY = "the text decoder's last blocks attend to a memory, but there is none: give one, or set cross_depth to 0"


@dataclass(frozen=True)
class TextDecoderConfig:
    """`vocab_size` is the tokenizer's. Of the `depth` blocks the last `cross_depth` attend to a memory whose tokens are
    `memory_width` wide; both are 0 where there is none."""

    vocab_size: int
    width: int = 256
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: int = 4
    cross_depth: int = 0
    memory_width: int = 0

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width % (2 * self.num_heads):
            raise UserError(
                f"the text decoder's depth={self.depth} must be at least 1, and its width={self.width} over num_heads="
                f"{self.num_heads} must give an even head width"
            )
        if not 0 <= self.cross_depth <= self.depth or (self.cross_depth > 0) != (self.memory_width > 0):
            raise UserError(
                f"the text decoder's cross_depth={self.cross_depth} must be between 0 and its depth={self.depth}, and "
                f"memory_width={self.memory_width} above 0 if, and only if, cross_depth is"
            )


class Memory(NamedTuple):
    """What the last blocks attend to, where `segment_ids` is 1; 0 is padding."""

    values: Float[Array, "B M D"]
    segment_ids: Int[Array, "B M"]


class Cache(NamedTuple):
    """Keys and values `[layer, B, capacity, N, K]` of the tokens so far, and those of the memory `[layer, B, M, N, K]`
    for the blocks that attend to it."""

    keys: jax.Array
    values: jax.Array
    memory_keys: jax.Array
    memory_values: jax.Array
    memory_ids: jax.Array


class Generated(NamedTuple):
    """The ids that follow each prompt, 0 from its end on, and their number; the end-of-text id is neither kept nor
    counted."""

    ids: Int[Array, "B T"]
    lengths: Int[Array, " B"]


class CausalAttention(SelfAttention):
    """Self-attention in which no token sees a later one."""

    def __call__(
        self, x: Float[Array, "B S E"], segment_ids: Int[Array, "B S"], angles: Angles
    ) -> Float[Array, "B S E"]:
        q, k, v = self._project(x, angles)
        bias = causal_bias(jnp.arange(x.shape[1])[None], x.shape[1], q.shape[2])
        return self.attention_out(attention(q, k, v, segment_ids, segment_ids, self.kernel, bias, TEXT))

    def extend(
        self, x: Float[Array, "B n E"], starts: Int[Array, " B"], angles: Angles, keys: jax.Array, values: jax.Array
    ) -> tuple[Float[Array, "B n E"], jax.Array, jax.Array]:
        """For the n tokens from each row's position on. Returns `keys` and `values` with their own, too."""
        q, k, v = self._project(x, angles)
        put = jax.vmap(lambda kept, new, start: jax.lax.dynamic_update_slice_in_dim(kept, new, start, axis=0))
        keys, values = put(keys, k, starts), put(values, v, starts)
        # places that nothing was written to are later ones, so that no token sees them
        bias = causal_bias(starts[:, None] + jnp.arange(x.shape[1]), keys.shape[1], q.shape[2])
        live = jnp.ones(keys.shape[:2], jnp.int32)
        read = attention(q, keys, values, live[:, : x.shape[1]], live, self.kernel, bias, TEXT)
        return self.attention_out(read), keys, values

    def _project(self, x: jax.Array, angles: Angles) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k = self.query_norm(self.query(x)), self.key_norm(self.key(x))
        return rotate(q, angles), rotate(k, angles), self.value(x)


class MemoryAttention(CrossAttention):
    """Attention of text tokens to a memory of another width, whose keys and values are kept."""

    def __init__(self, width: int, memory_width: int, num_heads: int, dtype: str, rngs: nnx.Rngs):
        super().__init__(width, memory_width, num_heads, dtype, rngs, starts_at_zero=False)

    def project(self, memory: Float[Array, "B M D"]) -> tuple[Float[Array, "B M N K"], Float[Array, "B M N K"]]:
        """Its keys and values, which do not depend on the text."""
        return self.key_norm(self.key(memory)), self.value(memory)

    def __call__(
        self, x: Float[Array, "B S E"], keys: jax.Array, values: jax.Array, memory_ids: Int[Array, "B M"]
    ) -> Float[Array, "B S E"]:
        q, live = self.query_norm(self.query(x)), jnp.ones(x.shape[:2], jnp.int32)
        return self.attention_out(attention(q, keys, values, live, memory_ids, dims=TEXT))


class DecoderBlock(nnx.Module):
    """Pre-norm causal self-attention, attention to the memory if there is one, and an MLP."""

    def __init__(self, cfg: TextDecoderConfig, has_memory: bool, dtype: str, rngs: nnx.Rngs):
        self.norm_attention = RMSNorm(cfg.width)
        self.attention = CausalAttention(cfg.width, cfg.num_heads, dtype, rngs, dim="text")
        if has_memory:
            self.norm_cross = RMSNorm(cfg.width)
            self.cross = MemoryAttention(cfg.width, cfg.memory_width, cfg.num_heads, dtype, rngs)
        self.norm_mlp = RMSNorm(cfg.width)
        self.mlp_in = nnx.Linear(cfg.width, cfg.width * cfg.mlp_ratio, dtype=DTYPES[dtype], rngs=rngs)
        self.mlp_out = nnx.Linear(cfg.width * cfg.mlp_ratio, cfg.width, dtype=DTYPES[dtype], rngs=rngs)

    def __call__(
        self, x: Float[Array, "B S E"], segment_ids: Int[Array, "B S"], angles: Angles, memory: Memory | None = None
    ) -> Float[Array, "B S E"]:
        x = x + self.attention(self.norm_attention(x), segment_ids, angles)
        if memory is not None:
            x = x + self.cross(self.norm_cross(x), *self.cross.project(memory.values), memory.segment_ids)
        return self._mlp(x)

    def extend(
        self, x: Float[Array, "B n E"], starts: Int[Array, " B"], angles: Angles, kept: tuple[jax.Array, ...]
    ) -> tuple[Float[Array, "B n E"], tuple[jax.Array, jax.Array]]:
        """`kept`: this block's keys and values, and the memory's with its segment ids if there is one."""
        read, *own = self.attention.extend(self.norm_attention(x), starts, angles, *kept[:2])
        x = x + read
        if len(kept) > 2:
            x = x + self.cross(self.norm_cross(x), *kept[2:])
        return self._mlp(x), (own[0], own[1])

    def _mlp(self, x: Float[Array, "B S E"]) -> Float[Array, "B S E"]:
        h = constrain(jax.nn.gelu(self.mlp_in(self.norm_mlp(x))), "row", None, "mlp")
        return constrain(x + self.mlp_out(h), "row", None, None)


class TextDecoder(nnx.Module):
    """Token ids `[B, S]` → the logits of each following token `[B, S, V]`, in float32."""

    def __init__(self, cfg: TextDecoderConfig, dtype: str, rngs: nnx.Rngs, remat: str = "none"):
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (cfg.vocab_size, cfg.width)) * cfg.width**-0.5)
        plain = cfg.depth - cfg.cross_depth
        self.blocks = stack(lambda rngs: DecoderBlock(cfg, False, dtype, rngs), plain, rngs) if plain else None
        self.cross_blocks = (
            stack(lambda rngs: DecoderBlock(cfg, True, dtype, rngs), cfg.cross_depth, rngs) if cfg.cross_depth else None
        )
        self.norm = RMSNorm(cfg.width)
        self.cfg, self.dtype, self.remat = cfg, dtype, remat

    def __call__(
        self, ids: Int[Array, "B S"], segment_ids: Int[Array, "B S"], memory: Memory | None = None
    ) -> Float[Array, "B S V"]:
        """`segment_ids`: 1 for the text of each row, 0 for the padding behind it."""
        return self.logits(self.cross(self.plain(self.embed(ids), segment_ids), segment_ids, memory))

    def embed(self, ids: Int[Array, "B S"]) -> Float[Array, "B S E"]:
        """With values of about 1, whatever the width."""
        scaled = self.embedding[...] * self.cfg.width**0.5
        return constrain(jnp.take(scaled, ids, axis=0).astype(DTYPES[self.dtype]), "row", None, None)

    def plain(self, x: Float[Array, "B S E"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B S E"]:
        """Through the first blocks, which know only the text."""
        if self.blocks is None:
            return x
        angles = self._angles(jnp.zeros(len(x), jnp.int32), x.shape[1])
        return scan_blocks(self.blocks, x, self.remat, segment_ids, angles)

    def cross(
        self, x: Float[Array, "B S E"], segment_ids: Int[Array, "B S"], memory: Memory | None
    ) -> Float[Array, "B S E"]:
        """Through the last blocks, which attend to the memory."""
        if self.cross_blocks is None:
            return x
        if memory is None:
            raise UserError(NO_MEMORY)
        angles = self._angles(jnp.zeros(len(x), jnp.int32), x.shape[1])
        return scan_blocks(self.cross_blocks, x, self.remat, segment_ids, angles, memory)

    def logits(self, x: Float[Array, "B S E"]) -> Float[Array, "B S V"]:
        """By the embedding's weights."""
        weights = self.embedding[...].astype(x.dtype)
        return jnp.einsum("BSE,VE->BSV", self.norm(x), weights, preferred_element_type=jnp.float32)

    def init_cache(self, num_rows: int, capacity: int, memory: Memory | None = None) -> Cache:
        """A cache without tokens, for texts of up to `capacity` tokens with the prompt."""
        shape = (self.cfg.depth, num_rows, capacity, self.cfg.num_heads, self.cfg.width // self.cfg.num_heads)
        empty = jnp.zeros(shape, DTYPES[self.dtype])
        if self.cross_blocks is not None and memory is None:
            raise UserError(NO_MEMORY)
        if self.cross_blocks is None or memory is None:
            nothing = jnp.zeros((0, num_rows, 0, *shape[3:]), DTYPES[self.dtype])
            return Cache(empty, empty, nothing, nothing, jnp.zeros((num_rows, 0), jnp.int32))
        graph, state = nnx.split(self.cross_blocks)
        project = lambda _, layer: (None, nnx.merge(graph, layer).cross.project(memory.values))  # noqa: E731
        return Cache(empty, empty, *jax.lax.scan(project, None, state)[1], memory.segment_ids)

    def extend(
        self, ids: Int[Array, "B n"], starts: Int[Array, " B"], cache: Cache
    ) -> tuple[Float[Array, "B n V"], Cache]:
        """The logits after each of n tokens from each row's position `starts` on, which the cache must have room for;
        and the cache with them. Places behind a row's last token may hold anything: the next one overwrites them."""
        x, angles = self.embed(ids), self._angles(starts, ids.shape[1])
        plain = self.cfg.depth - self.cfg.cross_depth
        own = [(cache.keys[:plain], cache.values[:plain]), (cache.keys[plain:], cache.values[plain:])]
        if self.blocks is not None:
            x, own[0] = _extend(self.blocks, x, starts, angles, own[0])
        if self.cross_blocks is not None:
            memory = (cache.memory_keys, cache.memory_values)
            x, own[1] = _extend(self.cross_blocks, x, starts, angles, (*own[1], *memory), cache.memory_ids)
        keys, values = (jnp.concatenate(parts) for parts in zip(*own, strict=True))
        return self.logits(x), cache._replace(keys=keys, values=values)

    def _angles(self, starts: Int[Array, " B"], count: int) -> Angles:
        positions = (starts[:, None] + jnp.arange(count)).astype(jnp.float32)
        return rotary_1d(positions, self.cfg.width // self.cfg.num_heads, THETA)


def _extend(
    blocks: nnx.Module, x: jax.Array, starts: jax.Array, angles: Angles, kept: tuple[jax.Array, ...], *whole: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """`x` through stacked blocks with what is kept for each (`kept`) or for all of them (`whole`)."""
    graph, state = nnx.split(blocks)

    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
        return nnx.merge(graph, layer[0]).extend(x, starts, angles, (*layer[1], *whole))

    return jax.lax.scan(body, x, (state, kept))


def causal_bias(positions: Int[Array, "#B L"], num_keys: int, num_heads: int) -> Float[Array, "#B N L S"]:
    """0 for the keys up to each query's position, minus infinity for later ones."""
    bias = jnp.where(jnp.arange(num_keys) <= positions[..., None], 0.0, -jnp.inf)
    return jnp.broadcast_to(bias[:, None], (bias.shape[0], num_heads, *bias.shape[1:]))


def generate(
    decoder: TextDecoder,
    prompts: Int[Array, "B P"],
    prompt_lengths: Int[Array, " B"],
    memory: Memory | None,
    max_tokens: int,
    end_id: int,
    temperature: float = 0.0,
    keys: jax.Array | None = None,
) -> Generated:
    """Up to `max_tokens` tokens after each prompt, until `end_id`: call it under `jit`.

    Prompts are padded behind their `prompt_lengths` tokens, of which there must be one at least. `temperature` 0 takes
    the likeliest token; above it, tokens are drawn with the row's own of the `keys` `[B]`, so that no text depends on
    the others of its batch.
    """
    if temperature > 0 and keys is None:
        raise UserError(f"temperature is {temperature}, but without keys nothing can be drawn: give one key a row")
    num_rows, length = prompts.shape
    cache = decoder.init_cache(num_rows, length + max_tokens, memory)
    logits, cache = decoder.extend(prompts, jnp.zeros(num_rows, jnp.int32), cache)
    after = jnp.take_along_axis(logits, prompt_lengths[:, None, None] - 1, axis=1)[:, 0]

    def choose(logits: jax.Array, number: jax.Array) -> jax.Array:
        if keys is None or not temperature:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        draw = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, number), row / temperature))
        return draw(keys, logits).astype(jnp.int32)

    def step(carry: Any) -> Any:
        number, token, ended, ids, lengths, cache = carry
        ids = ids.at[:, number].set(jnp.where(ended, 0, token))
        logits, cache = decoder.extend(token[:, None], prompt_lengths + number, cache)
        following = choose(logits[:, 0], number + 1)
        return number + 1, following, ended | (following == end_id), ids, lengths + ~ended, cache

    first, none = choose(after, jnp.int32(0)), jnp.zeros(num_rows, jnp.int32)
    start = (jnp.int32(0), first, first == end_id, jnp.zeros((num_rows, max_tokens), jnp.int32), none, cache)
    last = jax.lax.while_loop(lambda carry: (carry[0] < max_tokens) & ~jnp.all(carry[2]), step, start)
    return Generated(last[3], last[4])


def forward_flops(cfg: TextDecoderConfig, length: int, memory_length: int = 0) -> float:
    """FLOPs of a forward pass over one text of `length` tokens, by the conventions of `flops.py`."""
    e, tokens = cfg.width, float(length)
    plain = flops.linear(tokens, e, 4 * e + 2 * e * cfg.mlp_ratio) + flops.attention([length], [length], e)
    memory = flops.linear(tokens, e, 2 * e) + flops.linear(float(memory_length), cfg.memory_width, 2 * e)
    memory += flops.attention([length], [memory_length], e)
    return cfg.depth * plain + cfg.cross_depth * memory + flops.linear(tokens, e, cfg.vocab_size)
