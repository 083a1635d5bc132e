"""A frozen T5 as a function from captions to features: captions are packed into rows, of few static shapes."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from data_pipeline.packing import pack_text, stack_rows
from sora_jax.models.t5 import T5Config, t5_definition
from sora_jax.models.t5_files import T5Weights
from sora_jax.parallel import make_mesh, num_row_shards, put_batch, put_frozen

ROW_TOKENS, ROWS = 512, 16
"""Text tokens of a row and rows of a batch, as long as no caption is longer: then rows hold a power of two of these
tokens, and a batch has fewer of them, since a row's logits grow with the square of its tokens."""


def caption_encoder(
    weights: T5Weights, mesh: Mesh | None
) -> Callable[[Sequence[list[int]]], Iterator[Shaped[np.ndarray, "_n E"]]]:
    """A function from the ids of captions (each with its end of text) to the bfloat16 features `[n, E]` of each.

    Rows are spread over `mesh` (None: one device), the weights laid out as in training.
    """
    mesh = make_mesh({}, jax.local_devices()[:1]) if mesh is None else mesh
    shards = num_row_shards(mesh)
    params = put_frozen({"text_encoder": weights.params}, mesh)["text_encoder"]

    def encode(captions: Sequence[list[int]]) -> Iterator[Shaped[np.ndarray, "_n E"]]:
        times = 1
        while times * ROW_TOKENS < max(map(len, captions), default=0):
            times *= 2
        length, rows = times * ROW_TOKENS, -(-max(1, ROWS // times**2) // shards) * shards
        packed = list(_fill_rows(captions, length))
        for first in range(0, len(packed), rows):
            part = packed[first : first + rows]
            filled = [*part, *[[]] * (rows - len(part))]  # a shape is compiled once: the last batch is filled up
            batch = stack_rows([pack_text(members, length) for members in filled])
            with jax.set_mesh(mesh):
                features = np.asarray(_features(weights.config, params, put_batch(batch, mesh)))
            for row, members in zip(features, part, strict=False):
                ends = np.cumsum([len(ids) for ids in members])
                yield from np.split(row[: ends[-1]], ends[:-1])

    return encode


@functools.partial(jax.jit, static_argnames="cfg")
def _features(cfg: T5Config, params: dict, batch: dict[str, Int[Array, "B S"]]) -> Float[Array, "B S E"]:
    encoder = nnx.merge(t5_definition(cfg), params)
    return encoder(batch["text_ids"], batch["text_segment_ids"], batch["text_positions"]).astype(jnp.bfloat16)


def _fill_rows(captions: Sequence[list[int]], length: int) -> Iterator[list[list[int]]]:
    """The captions in their order, as many a row as fit."""
    row: list[list[int]] = []
    for ids in captions:
        if row and sum(map(len, row)) + len(ids) > length:
            yield row
            row = []
        row.append(ids)
    if row:
        yield row
