"""Steps of a random-access source, read ahead by Grain in threads or worker processes, in order.

The source decides what a step is; this only decides who computes it when. So order and content cannot depend on the
number of workers, and a resume is another `start_step`.
"""

import gc
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

STEPS_AHEAD = 2
READER_THREADS = 2

Batch = dict[str, np.ndarray]


@runtime_checkable
class StepSource(Protocol):
    """`source[step]` is this host's batch of a step, a pure function of the step. Picklable, safe in threads."""

    def __getitem__(self, step: int) -> Batch: ...


class Stream:
    """An iterator over batches that owns worker processes: use it as a context manager, or call `close`."""

    def __init__(self, dataset: grain.IterDataset, copies: bool):
        self._iterator: Any = iter(dataset)
        self._copies = copies

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        batch = next(self._iterator)
        # Workers send shared memory that must be given back before the interpreter ends: whoever keeps a batch would
        # keep it, so the arrays are copied out here.
        return {name: np.array(array) for name, array in batch.items()} if self._copies else batch

    def close(self) -> None:
        """Stops the workers; a closed stream is exhausted."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "close"):
            iterator.close()
        if self._copies:
            del iterator
            gc.collect()  # Grain's last element hangs in a cycle; its shared memory would count as leaked at exit

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_stream(source: StepSource, start_step: int, num_steps: int, num_workers: int = 0) -> Stream:
    """The batches of steps `[start_step, start_step + num_steps)` in order.

    `num_workers` 0 reads ahead in threads of this process; otherwise each worker process computes every
    `num_workers`-th step. Workers are spawned, so a script needs its `__main__` guard. What a worker raises is raised
    here.
    """
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags; without absl.app nobody parsed them
        flags.FLAGS.mark_as_parsed()
    steps = grain.MapDataset.range(start_step, start_step + num_steps).map(source.__getitem__)
    dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=READER_THREADS, prefetch_buffer_size=STEPS_AHEAD))
    if num_workers > 0:
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=STEPS_AHEAD)
        dataset = dataset.mp_prefetch(options)
    return Stream(dataset, copies=num_workers > 0)
