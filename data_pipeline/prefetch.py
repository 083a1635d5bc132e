"""Steps of a random-access source, read ahead by Grain in threads or worker processes, in order.

The source decides what a step is; this only decides who computes it when. So order and content cannot depend on the
number of workers, and a resume is another `start_step`.
"""

import gc
import logging
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from data_pipeline.errors import UserError

STEPS_AHEAD = 2
READER_THREADS = 2
MAX_RESTARTS = 3
ASKED_TO_END = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


@runtime_checkable
class StepSource(Protocol):
    """`source[step]` is this host's batch of a step, a pure function of the step. Picklable, safe in threads."""

    def __getitem__(self, step: int) -> Batch: ...


class Stream:
    """An iterator over batches that owns worker processes: use it as a context manager, or call `close`.

    Workers that are killed (most often by a host that runs out of memory) are started again at the very step that is
    due, with the same result, since a step does not depend on the ones before. Workers that die more than MAX_RESTARTS
    times at one step are a UserError; those that are asked to end, together with the run, are not started again.
    """

    def __init__(self, dataset_from: Callable[[int], grain.IterDataset], start_step: int, copies: bool):
        self._dataset_from, self._step, self._copies = dataset_from, start_step, copies
        self._iterator: Any = iter(dataset_from(start_step))
        self._restarts = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        batch = self._next()
        self._step, self._restarts = self._step + 1, 0
        # Workers send shared memory that must be given back before the interpreter ends: whoever keeps a batch would
        # keep it, so the arrays are copied out here.
        return {name: np.array(array) for name, array in batch.items()} if self._copies else batch

    def _next(self) -> Batch:
        while True:
            try:
                return next(self._iterator)
            except RuntimeError as error:
                exit_code = exit_code_of_worker(error)
                if exit_code is None or -exit_code in ASKED_TO_END:
                    raise
                self._restart(exit_code)

    def _restart(self, exit_code: int) -> None:
        if self._restarts == MAX_RESTARTS:
            raise UserError(
                f"the loader's worker died {1 + MAX_RESTARTS} times at step {self._step} (exit code {exit_code}; -9 "
                "is what a host does that runs out of memory): lower config.train.num_workers, or give it more memory"
            )
        self._restarts += 1
        logger.warning(
            "a worker of the loader died (exit code %d): the workers start again at step %d", exit_code, self._step
        )
        self._end()
        self._iterator = iter(self._dataset_from(self._step))

    def close(self) -> None:
        """Stops the workers; a closed stream is exhausted."""
        self._end()

    def _end(self) -> None:
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


def first_batches(source: StepSource | None, count: int) -> Iterator[Batch]:
    """The first `count` steps of a source; none without one."""
    return (source[step] for step in range(count)) if source is not None else iter(())


def make_stream(source: StepSource, start_step: int, num_steps: int, num_workers: int = 0) -> Stream:
    """The batches of steps `[start_step, start_step + num_steps)` in order.

    `num_workers` 0 reads ahead in threads of this process; otherwise each worker process computes every
    `num_workers`-th step. Workers are spawned, so a script needs its `__main__` guard. What a worker raises is raised
    here; one that dies is started again.
    """
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags; without absl.app nobody parsed them
        flags.FLAGS.mark_as_parsed()
    end = start_step + num_steps

    def dataset_from(step: int) -> grain.IterDataset:
        options = grain.ReadOptions(num_threads=READER_THREADS, prefetch_buffer_size=STEPS_AHEAD)
        dataset = grain.MapDataset.range(step, end).map(source.__getitem__).to_iter_dataset(options)
        if num_workers == 0:
            return dataset
        return dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=STEPS_AHEAD)
        )

    return Stream(dataset_from, start_step, copies=num_workers > 0)


def exit_code_of_worker(error: RuntimeError) -> int | None:
    """The exit code of the worker of whose death Grain tells, which it does in words only; None for another error."""
    told = re.search(r"Worker process was terminated unexpectedly with exit code (-?\d+)", str(error))
    return None if told is None else int(told[1])
