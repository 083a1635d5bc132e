"""Sampling from Python: `sora_jax.Generator.from_run(RUN).video(prompt, …)`, with the options of `sora-jax sample`.

generator = sora_jax.Generator.from_run("runs/quickstart/dit")
generator.video("a red circle moves left", frames=9, seed=0).save("red.mp4")
generator.image("a blue square", size="48x32").save("blue.png")
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipeline.errors import UserError
from data_pipeline.video_io import write_video
from sora_jax.generation.conditioning import check_size, first_part
from sora_jax.generation.files import check_file, describe
from sora_jax.generation.loading import TrainedRun, load_run
from sora_jax.generation.options import MAX_SEED, SampleOptions, changed


@dataclass(frozen=True)
class Sample:
    """A video (an image has one frame) with the resolved options and the checkpoint's step that made it, and `about`
    what of it was known (`Part.about`)."""

    frames: UInt8[np.ndarray, "T Y X 3"]
    fps: float
    options: SampleOptions
    step: int
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path | str) -> dict[str, Any]:
        """Writes mp4, webm, gif or png by the ending, atomically, and returns the line of a manifest. Raises UserError
        for another ending, for several frames as png, and for a failed write."""
        path = Path(path)
        check_file(path, len(self.frames))
        write_video(path, self.frames, self.fps)
        return {**describe(self.options, path, self.step), "frames": len(self.frames), **self.about}


class Generator:
    """A trained run that samples. Options are those of `SampleOptions`, by name; what is left open is the run's
    preview's. A result depends on the options alone, not on what is sampled beside it."""

    def __init__(self, run: TrainedRun):
        self.run = run

    @classmethod
    def from_run(cls, run: Path | str, step: int | None = None, *, ema: bool = True, **where: Any) -> "Generator":
        """The run in the folder `run`; see `load_run` for `where` things are and the errors that are raised."""
        return cls(load_run(Path(run), step, ema=ema, **where))

    def video(self, prompt: str = "", options: SampleOptions | None = None, **changes: Any) -> Sample:
        """One video. Raises UserError for what the run cannot make, before anything is sampled."""
        wanted = changed(options or SampleOptions(), prompt=prompt, **changes)
        return next(sample for _, sample in self.batch([wanted]))

    def image(self, prompt: str = "", options: SampleOptions | None = None, **changes: Any) -> Sample:
        """One image: a video of one frame."""
        return self.video(prompt, options, **{**changes, "frames": 1})

    def batch(
        self, what: Sequence[str | SampleOptions], rows_per_batch: int = 8, **changes: Any
    ) -> Iterator[tuple[int, Sample]]:
        """(number, sample) of each of `what`, as they are done: options, or prompts, of which the i-th has `seed` + i.

        Short samples share packed rows, of which `rows_per_batch` are sampled at once. Raises UserError as `video`.
        """
        wanted = [self.resolve(w, number, changes) for number, w in enumerate(what)]
        samplings = {options.sampling(): None for options in wanted}
        for sampling in samplings:
            numbers = [n for n, options in enumerate(wanted) if options.sampling() == sampling]
            parts = {n: first_part(wanted[n], self.run.sampler, self.run.preview.num_frames) for n in numbers}
            while parts:  # what takes more than one canvas goes on from its last one
                waiting, numbers = {}, list(parts)
                requests = [part.request for part in parts.values()]
                found = self.run.sampler.generate(self.run.params, self.run.frozen, requests, sampling, rows_per_batch)
                for number, frames in ((numbers[place], frames) for place, frames in found):
                    result = parts[number].assemble(frames)
                    if (part := parts[number].then(result)) is not None:
                        waiting[number] = part
                        continue
                    about = parts[number].about(frames)
                    yield number, Sample(result, parts[number].request.fps, wanted[number], self.run.step, about)
                parts = waiting

    def resolve(self, what: str | SampleOptions, number: int, changes: dict[str, Any]) -> SampleOptions:
        """Options with nothing left open."""
        options = SampleOptions(prompt=what) if isinstance(what, str) else what
        options = changed(options, **changes)
        if isinstance(what, str):
            if options.seed + number > MAX_SEED:
                raise UserError(f"the seed of sample {number} would be above {MAX_SEED}; choose a smaller seed")
            options = changed(options, seed=options.seed + number)
        return options.resolved(self.run.preview)

    def check(self, wanted: Sequence[SampleOptions]) -> None:
        """Raises UserError for what the run cannot make."""
        resolved = [options.resolved(self.run.preview) for options in wanted]
        for options in resolved:
            check_size(options, self.run.sampler)
        self.run.sampler.fitting([options.request() for options in resolved if not options.is_of_video])
