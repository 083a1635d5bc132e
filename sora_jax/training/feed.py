"""Batches on their way from the loader to the devices."""

import collections
import time

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.errors import UserError
from sora_jax.parallel import put_batch
from sora_jax.training.metrics import IN_FLIGHT, Work, count_work
from sora_jax.types import Batch, Prepared


class Feed:
    """Batches on the device, one ahead of the step that reads them, and what is known of the one taken last.

    Of several processes each keeps a few batches in reserve: a signal that ends the loader's workers too must leave it
    enough to reach the step at which all have agreed to stop.
    """

    def __init__(self, prepared: Prepared, mesh: Mesh, start: int) -> None:
        self._batches = iter(prepared.make_batches(start, prepared.train.num_steps - start))
        self._flops, self._mesh = prepared.task.flops, mesh
        self._reserve: collections.deque[Batch] = collections.deque()
        self._num_reserve = IN_FLIGHT + 2 if jax.process_count() > 1 else 0
        self._failure: Exception | None = None
        self.work = Work("rows", 0, 0, 0.0)
        self.wait_s = 0.0
        self.shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def take(self) -> dict[str, jax.Array]:
        """The next step's batch on the device. Raises UserError if the data ends before the run."""
        begun = time.perf_counter()
        batch = self._next()
        self.wait_s = time.perf_counter() - begun
        self.shapes = tuple((name, np.shape(x)) for name, x in batch.items())
        self.work = count_work(batch, self._flops(batch))
        # How many clips a host could not read is its own affair: it is logged, and never part of the global batch.
        return put_batch({name: x for name, x in batch.items() if name != "num_unreadable"}, self._mesh)

    def _next(self) -> Batch:
        while len(self._reserve) <= self._num_reserve and self._failure is None:
            try:
                self._reserve.append(next(self._batches))
            except StopIteration:
                self._failure = UserError(
                    "the data ended before config.train.num_steps was reached; make_batches must yield them all"
                )
            except Exception as error:
                self._failure = error
        if not self._reserve and self._failure is not None:
            raise self._failure
        return self._reserve.popleft()

    def close(self) -> None:
        """Ends the loader's workers."""
        getattr(self._batches, "close", lambda: None)()
