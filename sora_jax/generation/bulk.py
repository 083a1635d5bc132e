"""Many samples into one folder: resumable, and split over processes and devices.

Sample i shows prompt i modulo their number, with the seed `--seed` + i. Samples are made in groups that follow from the
prompts alone: one packed batch of one shape, always whole. So a job that was killed, or that more processes or devices
share, makes the same bytes; each group is one process's and one device's.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from data_pipeline.errors import UserError
from sora_jax.generation.api import Generator
from sora_jax.generation.expansion import settle_expansions
from sora_jax.generation.files import check_file, name_of
from sora_jax.generation.manifest import Manifest, digest
from sora_jax.generation.options import MAX_SEED, SampleOptions, changed
from sora_jax.types import Device


@dataclass(frozen=True)
class Bulk:
    """A job: `num` samples of `prompts`, with `options` (resolved; their prompt and seed stand for all). `expanded` are
    the texts that are sampled in their place, if there are any, and `expander` is who wrote them.

    Raises UserError for files that cannot be named or written, and for seeds beyond the last one.
    """

    prompts: tuple[str, ...]
    num: int
    out: Path
    options: SampleOptions
    names: str = "slug"
    ending: str = "mp4"
    rows_per_batch: int = 8
    expanded: tuple[str, ...] = ()
    expander: str = ""

    def __post_init__(self) -> None:
        if min(self.num, self.rows_per_batch) < 1:
            raise UserError(f"--num is {self.num} and --rows_per_batch {self.rows_per_batch}: both must be at least 1")
        if self.options.seed + self.num - 1 > MAX_SEED:
            raise UserError(
                f"the last of {self.num} samples would have seed {self.options.seed + self.num - 1}, but {MAX_SEED} is "
                "the largest; choose a smaller --seed"
            )
        if any(path.is_file() for path in (self.out, *self.out.parents)):
            raise UserError(f"--out {self.out} is a file or lies below one, but several samples need a folder")
        for number in range(min(self.num, len(self.prompts))):
            check_file(self.file(number), self.options.fewest_frames())

    def wanted(self, number: int) -> SampleOptions:
        """The options of one sample."""
        place, seed = number % len(self.prompts), self.options.seed + number
        texts = {"expanded_prompt": self.expanded[place], "expander": self.expander} if self.expanded else {}
        return changed(self.options, prompt=self.prompts[place], seed=seed, **texts)

    def file(self, number: int) -> Path:
        """Where it goes."""
        index, place = divmod(number, len(self.prompts))
        return self.out / name_of(self.names, self.prompts[place], number, index, self.ending)

    def recipe(self, generator: Generator) -> dict[str, Any]:
        """All that decides what a sample is, but its number. How many there are, and who makes them, does not."""
        options = self.options.recipe()
        del options["prompt"]
        prompts: dict[str, Any] = {"prompts": digest(self.prompts), "num_prompts": len(self.prompts)}
        if self.expanded:
            prompts |= {"expanded_prompts": digest(self.expanded), "expander": self.expander}
        return {**generator.run.identity, **options, **prompts, "names": self.names, "format": self.ending}


def sample_in_bulk(
    generator: Generator,
    job: Bulk,
    *,
    shard: tuple[int, int] = (0, 1),
    devices: Sequence[Device] | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Manifest, dict[str, Any]]:
    """Makes what is missing of this process's share, `shard` (index, count), on the local `devices` (default: all).
    `told` hears how many of how many of the share are done. When all processes are done, `merge` what is returned.

    Raises UserError for what the run cannot make, and for a folder with samples of another recipe.
    """
    started = time.monotonic()
    if generator.expander is not None and not job.expanded:
        longer = settle_expansions(job.out, generator.expander, job.prompts)
        job = replace(job, expanded=tuple(longer), expander=generator.expander.name)
    examples = [job.wanted(number) for number in range(min(job.num, len(job.prompts)))]
    num_rows = min(job.rows_per_batch, job.num)
    generator = generator.fitting(examples, num_rows)
    manifest = Manifest(job.out, job.recipe(generator), *shard)
    there = manifest.lines()
    groups, num_rows = _share(generator, job, shard)
    missing = [group for group in groups if any(number not in there for number in group)]
    total = sum(map(len, groups))
    made = total - sum(number not in there for group in missing for number in group)
    told(made, total)
    skipped = made

    def make(replica: Generator, group: list[int]) -> None:
        nonlocal made
        for number, line in _make_group(replica, job, group, num_rows, there.keys()):
            manifest.append({**line, "number": number})
            with lock:
                made += 1
                told(made, total)

    lock = threading.Lock()
    devices = jax.local_devices() if devices is None else devices
    _spread(make, missing, _replicas(generator, devices[: max(1, len(missing))]))
    return manifest, {
        "samples": total,
        "made": made - skipped,
        "skipped": skipped,
        "out": str(job.out),
        "recipe": manifest.recipe,
        "seconds": round(time.monotonic() - started, 3),
        **generator.run.identity,
    }


def _share(generator: Generator, job: Bulk, shard: tuple[int, int]) -> tuple[list[list[int]], int]:
    """The numbers of each group that is this process's, and the rows of every group."""
    index, count = shard
    if job.options.image or job.options.video:  # how large their canvases are is known when they are laid
        return [[number] for number in range(index, job.num, count)], 1
    requests = (job.wanted(number).request() for number in range(job.num))
    batches = list(generator.run.sampler.batches(requests, job.rows_per_batch))
    return [sorted(n for row in rows for n in row) for rows in batches[index::count]], len(batches[0])


def _make_group(
    generator: Generator, job: Bulk, group: list[int], num_rows: int, there: Collection[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, line of the manifest) of each sample of the group that is not there, once its file is."""
    wanted = [job.wanted(number) for number in group]
    for place, sample in generator.batch(wanted, num_rows, same_rows=True):
        if group[place] not in there:
            yield group[place], sample.save(job.file(group[place]))


def _replicas(generator: Generator, devices: Sequence[Device]) -> list[tuple[Device, Generator]]:
    """The generator on each device alone; one that is spread over a mesh works as a whole."""
    if generator.run.sampler.mesh is not None:
        return [(devices[0], generator)]
    return [(device, Generator(generator.run.on(device))) for device in devices]


def _spread(
    make: Callable[[Generator, list[int]], None],
    groups: Sequence[list[int]],
    replicas: Sequence[tuple[Device, Generator]],
) -> None:
    """Calls `make` for each group, one at a time on each device. The first error ends all, after their groups."""
    waiting, lock, failed = iter(groups), threading.Lock(), threading.Event()

    def work(device: Device, replica: Generator) -> None:
        with jax.default_device(device):
            while not failed.is_set():
                with lock:
                    group = next(waiting, None)
                if group is None:
                    return
                try:
                    make(replica, group)
                except BaseException:
                    failed.set()
                    raise

    if len(replicas) == 1:
        work(*replicas[0])
        return
    with ThreadPoolExecutor(len(replicas), thread_name_prefix="sample") as pool, contextlib.ExitStack() as stack:
        stack.callback(failed.set)  # also when Ctrl-C ends the wait
        for future in [pool.submit(work, *replica) for replica in replicas]:
            future.result()
