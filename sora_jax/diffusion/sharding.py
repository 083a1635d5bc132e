"""Where the arrays of sampling lie on a mesh: of the sampler that runs (`PackedSampler`) and of its plan alike.

Rows lie along the row axes and each row's tokens along `context`, from the start: a minute of 1080p is three million
tokens. Parameters lie along `fsdp` and `context` together (`SAMPLING_RULES`) and are gathered block by block.
"""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh, NamedSharding

from sora_jax.parallel import CONTEXT, SAMPLING_RULES, spec, state_shardings
from sora_jax.types import Batch

PER_TOKEN = ("tokens", "noise", "segment_ids", "positions", "noise_group_ids")
"""Arrays `[B, L, …]` of a batch of rows. The others, of text and segments, are small and whole along `context`."""
LANES = 128
"""A device's part of a row is a multiple of so many tokens: kernels' tiles are."""


def network_shardings(params: Any, mesh: Mesh) -> Any:
    """The shardings of a network's parameters (arrays or shapes): the DiT's, or a frozen network's."""
    return state_shardings(params, mesh, SAMPLING_RULES)


def row_shardings(rows: Batch, mesh: Mesh) -> dict[str, NamedSharding]:
    """The shardings of a batch of rows (arrays or shapes; the noise may be one of them, under `noise`). The result of
    `sample_rows` lies as `tokens` do."""

    def row(name: str, value: Any) -> NamedSharding:
        dims = ("row", "token" if name in PER_TOKEN else None, *(None,) * len(value.shape))[: len(value.shape)]
        return NamedSharding(mesh, spec(dims, value.shape, mesh))

    return {name: row(name, value) for name, value in rows.items()}


def spread_length(num_tokens: int, mesh: Mapping[str, int]) -> int:
    """The shortest row of at least `num_tokens` that the axis `context` of a mesh of this shape can split."""
    parts = mesh.get(CONTEXT, 1)
    multiple = parts * LANES if parts > 1 else 1
    return -(-num_tokens // multiple) * multiple
