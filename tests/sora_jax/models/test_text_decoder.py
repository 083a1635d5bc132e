"""The text decoder: step by step equals at once, and generation equals the naive loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipeline.errors import UserError
from sora_jax.models.layers import definition, initialise
from sora_jax.models.text_decoder import Generated, Memory, TextDecoder, TextDecoderConfig, generate
from sora_jax.parallel import make_mesh

PLAIN = TextDecoderConfig(vocab_size=23, width=32, depth=2, num_heads=2)
CROSSING = TextDecoderConfig(vocab_size=23, width=32, depth=3, num_heads=2, cross_depth=2, memory_width=24)
NAMES = {"plain": PLAIN, "crossing": CROSSING}
END, LONGEST = 2, 16


@functools.cache
def decoder_of(cfg: TextDecoderConfig) -> TextDecoder:
    make = lambda rngs: TextDecoder(cfg, "float32", rngs)  # noqa: E731
    return nnx.merge(definition(make), jax.jit(lambda: initialise(make, jax.random.key(0)))())


@functools.cache
def forward_of(cfg: TextDecoderConfig):
    return jax.jit(decoder_of(cfg).__call__)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def generated(
    cfg: TextDecoderConfig,
    prompts: jax.Array,
    lengths: jax.Array,
    memory,
    most: int,
    end: int,
    temperature=0.0,
    keys=None,
) -> Generated:
    return generate(decoder_of(cfg), prompts, lengths, memory, most, end, temperature, keys)


def memory_of(cfg: TextDecoderConfig, num_rows: int) -> Memory | None:
    """Rows with 5, 4, 3 … live tokens of 5."""
    if not cfg.cross_depth:
        return None
    values = jax.random.normal(jax.random.key(7), (num_rows, 5, cfg.memory_width))
    lengths = 5 - jnp.arange(num_rows) % 5
    return Memory(values, (jnp.arange(5) < lengths[:, None]).astype(jnp.int32))


def naive(cfg: TextDecoderConfig, prompts: list[list[int]], memory: Memory | None, most: int) -> list[list[int]]:
    """The likeliest token again and again, each time by a forward pass over the whole texts."""
    texts = [list(prompt) for prompt in prompts]
    ended = [False] * len(texts)
    for _ in range(most):
        padded = np.asarray([ids + [0] * (LONGEST - len(ids)) for ids in texts])
        lengths = np.asarray([len(ids) for ids in texts])
        logits = forward_of(cfg)(padded, (np.arange(LONGEST) < lengths[:, None]).astype(np.int32), memory)
        for row, ids in enumerate(texts):
            token = int(np.argmax(logits[row, len(ids) - 1]))
            ended[row] |= token == END
            if not ended[row]:
                ids.append(token)
    return [ids[len(prompt) :] for ids, prompt in zip(texts, prompts, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_one_by_one_give_the_logits_of_all_at_once(name):
    cfg = NAMES[name]
    decoder, memory = decoder_of(cfg), memory_of(cfg, 3)
    ids = jax.random.randint(jax.random.key(1), (3, 7), 0, cfg.vocab_size)
    whole = forward_of(cfg)(ids, jnp.ones_like(ids), memory)
    extend, start, parts = jax.jit(decoder.extend), 0, []
    cache = jax.jit(lambda memory: decoder.init_cache(3, 10, memory))(memory)
    for count in (4, 1, 1, 1):  # a prompt of four, then single tokens
        logits, cache = extend(ids[:, start : start + count], jnp.full(3, start), cache)
        parts.append(logits)
        start += count
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_no_token_sees_a_later_one_nor_padding():
    forward = forward_of(PLAIN)
    ids = jax.random.randint(jax.random.key(1), (1, 8), 0, 23)
    segments = jnp.asarray([[1, 1, 1, 1, 1, 0, 0, 0]])
    logits = forward(ids, segments)
    later, padding = ids.at[0, 3:].set((ids[0, 3:] + 1) % 23), ids.at[0, 5:].set(9)
    np.testing.assert_allclose(logits[0, :3], forward(later, segments)[0, :3], atol=1e-6)
    assert np.abs(logits[0, 3] - forward(later, segments)[0, 3]).max() > 1e-2
    np.testing.assert_allclose(logits[0, :5], forward(padding, segments)[0, :5], atol=1e-6)


def test_the_memory_counts_where_it_is_no_padding():
    forward, memory = forward_of(CROSSING), memory_of(CROSSING, 2)
    ids = jax.random.randint(jax.random.key(1), (2, 4), 0, 23)
    logits = forward(ids, jnp.ones_like(ids), memory)
    hidden = memory._replace(values=memory.values.at[1, 4].add(3.0))  # padding of the second row
    shown = memory._replace(values=memory.values.at[1, 3].add(3.0))
    np.testing.assert_allclose(logits, forward(ids, jnp.ones_like(ids), hidden), atol=1e-6)
    assert np.abs(logits - forward(ids, jnp.ones_like(ids), shown))[1].max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_greedy_generation_equals_the_naive_loop_for_prompts_of_different_lengths(name):
    cfg = NAMES[name]
    prompts = [[2], [2, 5, 9, 4], [2, 11, 3], [2, 7], [2, 8, 8, 1, 6]]
    memory, longest = memory_of(cfg, len(prompts)), max(map(len, prompts))
    padded = jnp.asarray([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    lengths = jnp.asarray([len(prompt) for prompt in prompts])
    found, expected = generated(cfg, padded, lengths, memory, 8, END), naive(cfg, prompts, memory, 8)
    assert [len(ids) for ids in expected] == np.asarray(found.lengths).tolist()
    assert [ids + [0] * (8 - len(ids)) for ids in expected] == np.asarray(found.ids).tolist()


def test_generation_stops_at_the_end():
    prompts, lengths = jnp.asarray([[2], [5]]), jnp.asarray([1, 1])
    free = generated(PLAIN, prompts, lengths, None, 6, -1)
    assert np.asarray(free.lengths).tolist() == [6, 6]
    ids = np.asarray(free.ids[0]).tolist()
    end = ids[3]
    stopped, first = generated(PLAIN, prompts, lengths, None, 6, end), ids.index(end)
    assert int(stopped.lengths[0]) == first
    assert np.asarray(stopped.ids[0]).tolist() == ids[:first] + [0] * (6 - first)


def test_drawn_tokens_depend_on_the_rows_key_alone():
    keys, prompts, lengths = jax.random.split(jax.random.key(3), 4), jnp.full((4, 1), END), jnp.ones(4, jnp.int32)
    together = generated(PLAIN, prompts, lengths, None, 6, -1, 2.0, keys)
    turned = generated(PLAIN, prompts, lengths, None, 6, -1, 2.0, keys[jnp.asarray([2, 3, 0, 1])])
    assert np.array_equal(together.ids[2:], turned.ids[:2])
    assert len({tuple(row) for row in np.asarray(together.ids).tolist()}) > 1


def test_generation_on_a_mesh_is_the_same():
    memory, prompts, lengths = memory_of(CROSSING, 4), jnp.full((4, 2), 5), jnp.asarray([1, 2, 2, 1])
    alone = generated(CROSSING, prompts, lengths, memory, 5, END)
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])):
        spread = generated(CROSSING, prompts, lengths, memory, 5, END)
    assert np.array_equal(alone.ids, spread.ids) and np.array_equal(alone.lengths, spread.lengths)


@pytest.mark.parametrize("wrong", [dict(depth=0), dict(width=30), dict(cross_depth=1), dict(memory_width=8)])
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(UserError, match="text decoder"):
        TextDecoderConfig(**{"vocab_size": 23, "width": 32, "depth": 2, "num_heads": 2, **wrong})


def test_what_is_missing_is_said():
    prompts, lengths = jnp.full((2, 1), END, jnp.int32), jnp.ones(2, jnp.int32)
    with pytest.raises(UserError, match="without keys"):
        generate(decoder_of(PLAIN), prompts, lengths, None, 3, END, temperature=1.0)
    with pytest.raises(UserError, match="attend to a memory, but there is none"):
        decoder_of(CROSSING)(prompts, jnp.ones_like(prompts))
    with pytest.raises(UserError, match="attend to a memory, but there is none"):
        generate(decoder_of(CROSSING), prompts, lengths, None, 3, END)
