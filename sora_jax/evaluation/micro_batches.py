"""A network on all devices of this process, in micro-batches of one fixed size.

A device always runs the same program on `micro_batch` rows, the last of them padded, whatever the number of rows given
at a time and of devices: so no score depends on either.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sora_jax.types import Device

DEVICES = "device"


class MicroBatches:
    """`forward(params, *rows)` gives a tuple of arrays with as many rows; `params` are copied to each device."""

    def __init__(self, forward: Callable[..., tuple[jax.Array, ...]], params: Any, micro_batch: int, mesh: Mesh):
        self.micro_batch, self.mesh = micro_batch, mesh
        whole, self._rows = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(DEVICES)))
        self._params = jax.device_put(params, whole)

        def apply(params: Any, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return forward(params, *rows)

        specs = (PartitionSpec(), PartitionSpec(DEVICES))
        self._apply = jax.jit(
            jax.shard_map(apply, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(DEVICES), check_vma=False)
        )

    def __call__(self, *rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """What `forward` gives for all rows, in their order."""
        num, step = len(rows[0]), self.micro_batch * self.mesh.size
        parts = [
            self._apply(self._params, tuple(self._padded(x[i : i + step], step) for x in rows))
            for i in range(0, num, step)
        ]
        return tuple(np.concatenate([np.asarray(part) for part in column])[:num] for column in zip(*parts, strict=True))

    def _padded(self, rows: np.ndarray, step: int) -> jax.Array:
        rest = np.zeros((step - len(rows), *rows.shape[1:]), rows.dtype)
        return jax.device_put(np.concatenate([rows, rest]), self._rows)


def device_mesh(devices: Sequence[Device] | None) -> Mesh:
    """A row of devices: all of this process for None."""
    return Mesh(np.array(list(devices or jax.local_devices())), (DEVICES,))
