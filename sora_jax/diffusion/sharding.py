"""Where the arrays of sampling lie on a mesh: for the sampler that runs and for its plan, which only compiles.

Rows lie along the row axes and each row's tokens along `context`, from the start: a minute of 1080p is three million
tokens. Parameters lie along `fsdp` and `context` together (`SAMPLING_RULES`) and are gathered block by block.
"""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh, NamedSharding

from sora_jax.parallel import CONTEXT, SAMPLING_RULES, spec, state_shardings
from sora_jax.types import Batch, Frozen

PER_TOKEN = ("tokens", "noise", "segment_ids", "positions", "noise_group_ids")
"""Arrays `[B, L, …]` of a batch of rows. The others, of text and segments, are small and whole along `context`."""
LANES = 128
"""A device's part of a row is a multiple of so many tokens: kernels' tiles are."""


def sampling_shardings(params: Any, frozen: Frozen, rows: Batch, mesh: Mesh) -> tuple[Any, Any, dict[str, Any]]:
    """The shardings of the DiT's parameters, of the frozen networks and of a batch of rows (arrays or shapes; the noise
    may be one of them, under `noise`). The result of `sample_rows` lies as `tokens` do."""

    def row(name: str, value: Any) -> NamedSharding:
        dims = ("row", "token" if name in PER_TOKEN else None, *(None,) * len(value.shape))[: len(value.shape)]
        return NamedSharding(mesh, spec(dims, value.shape, mesh))

    networks = (state_shardings(tree, mesh, SAMPLING_RULES) for tree in (params, frozen))
    return *networks, {name: row(name, value) for name, value in rows.items()}


def spread_length(num_tokens: int, mesh: Mapping[str, int]) -> int:
    """The shortest row of at least `num_tokens` that the axis `context` of a mesh of this shape can split."""
    parts = mesh.get(CONTEXT, 1)
    multiple = parts * LANES if parts > 1 else 1
    return -(-num_tokens // multiple) * multiple
