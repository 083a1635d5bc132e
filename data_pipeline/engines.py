"""Where many independent tasks run: processes of this machine, or a Ray cluster. A task is a pure function of its item.

Both engines keep a window of tasks in flight (back-pressure: what is produced is consumed before more is asked for),
try a task again whose worker died, and report a task that always kills its worker as `Died`. What a task raises ends
the job: tasks report bad items as results.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from data_pipeline.errors import SystemFailure, UserError

ATTEMPTS = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Died:
    """The result of an item whose worker died each time."""

    attempts: int


class LocalEngine:
    """Spawned processes. After a death, whatever was in flight runs again, each item in a process of its own."""

    def __init__(self, workers: int = 1):
        self.workers = max(1, workers)

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], accelerators: float = 0.0
    ) -> Iterator[tuple[int, Any]]:
        """(place in `items`, result or `Died`) in the order of completion. A machine's accelerators are few: tasks that
        ask for some run one at a time."""
        workers = 1 if accelerators else min(self.workers, max(1, len(items)))
        waiting = list(range(len(items)))[::-1]
        while waiting:
            suspects = yield from self._until_death(function, items, waiting, workers)
            for place in suspects:
                logger.warning("a process died: task %d runs on its own", place)
                yield place, self._alone(function, items[place])

    def _until_death(
        self, function: Callable[[Any], Any], items: Sequence[Any], waiting: list[int], workers: int
    ) -> Iterator[tuple[int, Any]]:
        """Takes places off the end of `waiting`; returns those in flight when a process died, if one did."""
        running: dict[Future, int] = {}
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        running[pool.submit(function, items[waiting[-1]])] = waiting[-1]
                        waiting.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield running.pop(future), result
            except BrokenProcessPool:
                return sorted(running.values())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return []

    def _alone(self, function: Callable[[Any], Any], item: Any) -> Any:
        for _ in range(ATTEMPTS - 1):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                try:
                    return pool.submit(function, item).result()
                except BrokenProcessPool:
                    continue
        return Died(ATTEMPTS)


class RayEngine:
    """Tasks on a Ray cluster: one CPU each, and as many GPUs as they ask for. `address` as `ray.init` takes it ("":
    a cluster on this machine). The package must be importable on every node. Nodes may come and go."""

    def __init__(self, address: str = ""):
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray needs Ray: pip install 'sora-jax[ray]'") from error
        self._ray: Any = ray
        if not ray.is_initialized():
            try:
                ray.init(address=address or None, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, ValueError) as error:
                raise SystemFailure(f"there is no Ray cluster at --address {address!r} ({error})") from error

    @property
    def workers(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], accelerators: float = 0.0
    ) -> Iterator[tuple[int, Any]]:
        """(place in `items`, result or `Died`) in the order of completion; each task has `accelerators` to itself."""
        ray = self._ray
        self._check_accelerators(accelerators)
        # Ray tries a task again whose worker or node died.
        task = ray.remote(max_retries=ATTEMPTS - 1, num_cpus=1, num_gpus=accelerators)(_call)
        causes = ("WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError")
        deaths = tuple(getattr(ray.exceptions, cause) for cause in causes)
        shared, waiting, running = ray.put(function), list(range(len(items)))[::-1], {}
        while waiting or running:
            while waiting and len(running) < 2 * self.workers:
                place = waiting.pop()
                running[task.remote(shared, items[place])] = place
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                place = running.pop(reference)
                try:
                    yield place, ray.get(reference)
                except deaths:
                    yield place, Died(ATTEMPTS)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause or error from error

    def _check_accelerators(self, accelerators: float) -> None:
        have = self._ray.cluster_resources().get("GPU", 0)
        if accelerators > have:
            raise UserError(
                f"a model asks for {accelerators:g} accelerators, the Ray cluster has {have:g}: add nodes with GPUs, "
                "or set its accelerators to 0"
            )


Engine = LocalEngine | RayEngine
"""Both have `workers`, how many tasks run at once, and `map`."""


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)
