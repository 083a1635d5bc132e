"""Sampling from Python: `sora_jax.Generator.from_run(RUN).video(prompt, …)`, with the options of `sora-jax sample`.

generator = sora_jax.Generator.from_run("runs/quickstart/dit")
generator.video("a red circle moves left", frames=9, seed=0).save("red.mp4")
generator.image("a blue square", size="48x32").save("blue.png")
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipeline.errors import UserError
from data_pipeline.video_io import Frames, write_video
from sora_jax.generation.conditioning import check_size, make_part
from sora_jax.generation.expansion import Expander, expand_options, expand_scenes
from sora_jax.generation.files import check_file, describe
from sora_jax.generation.film import Film, make_film
from sora_jax.generation.loading import TrainedRun, load_run
from sora_jax.generation.memory import check_fits, with_tiles
from sora_jax.generation.options import MAX_SEED, SampleOptions, changed
from sora_jax.generation.storyboard import read_storyboard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A video (an image has one frame) with the resolved options and the run (`TrainedRun.identity`) that made it, and
    `about` what of it was known (`Part.about`)."""

    frames: UInt8[np.ndarray, "T Y X 3"]
    fps: float
    options: SampleOptions
    identity: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path | str) -> dict[str, Any]:
        """Writes mp4, webm, gif or png by the ending, atomically, and returns the line of a manifest. Raises UserError
        for another ending, for several frames as png, and for a failed write."""
        path = Path(path)
        check_file(path, len(self.frames))
        write_video(path, self.frames, self.fps)
        return {**describe(self.options, path, self.identity), "frames": len(self.frames), **self.about}


class Generator:
    """A trained run that samples. Options are those of `SampleOptions`, by name; what is left open is the run's
    preview's. A result depends on the options alone, not on what is sampled beside it. With an `expander`, prompts are
    made long before they are sampled."""

    def __init__(self, run: TrainedRun, expander: Expander | None = None):
        self.run, self.expander = run, expander

    @classmethod
    def from_run(
        cls, run: Path | str, step: int | None = None, *, ema: bool = True, expander: Expander | None = None,
        **where: Any,
    ) -> "Generator":  # fmt: skip
        """The run in the folder `run`; see `load_run` for `where` things are and the errors that are raised."""
        return cls(load_run(Path(run), step, ema=ema, **where), expander)

    def video(self, prompt: str = "", options: SampleOptions | None = None, **changes: Any) -> Sample:
        """One video. Raises UserError for what the run cannot make, before anything is sampled."""
        wanted = [changed(options or SampleOptions(), prompt=prompt, **changes).resolved(self.run.preview)]
        return next(sample for _, sample in self.batch(wanted))

    def image(self, prompt: str = "", options: SampleOptions | None = None, **changes: Any) -> Sample:
        """One image: a video of one frame."""
        return self.video(prompt, options, **{**changes, "frames": 1})

    def film(
        self,
        prompt: str = "",
        options: SampleOptions | None = None,
        *,
        storyboard: Path | str | None = None,
        window: int = 0,
        frames: int | None = None,
        **changes: Any,
    ) -> Film:
        """A long video, made as it is written: `.film(…, frames=1440).save(path)`; see `make_film`."""
        wanted = changed(options or SampleOptions(), prompt=prompt, **changes)
        scenes = [] if storyboard is None else expand_scenes(self.expander, read_storyboard(Path(storyboard)))
        wanted = wanted if scenes else expand_options(self.expander, [wanted])[0]
        prompts, num_frames = [scene.text for scene in scenes] or [wanted.text], window or self.run.preview.num_frames
        run = self.fitting([changed(wanted, expanded_prompt=p, frames=num_frames) for p in prompts]).run
        return make_film(run, wanted, frames, window, scenes)

    def batch(
        self,
        what: Sequence[str | SampleOptions],
        rows_per_batch: int = 8,
        *,
        same_rows: bool = False,
        **changes: Any,
    ) -> Iterator[tuple[int, Sample]]:
        """(number, sample) of each of `what`, as they are done: options, or prompts, of which the i-th has `seed` + i.

        Short samples share packed rows, of which `rows_per_batch` are sampled at once: as many as are needed, or with
        `same_rows` always so many (of a generator that is `fitting`). Raises UserError as `video`.
        """
        resolved = [self.resolve(w, number, changes) for number, w in enumerate(what)]
        wanted = expand_options(self.expander, resolved)
        run = self.run if same_rows else self.fitting(wanted, min(len(wanted), rows_per_batch)).run
        films = {n: make_film(run, options, options.frames) for n, options in enumerate(wanted) if options.extend}
        of_one_canvas = [n for n in range(len(wanted)) if n not in films]
        for sampling in {wanted[n].sampling(): None for n in of_one_canvas}:
            numbers = [n for n in of_one_canvas if wanted[n].sampling() == sampling]
            parts = [make_part(wanted[n], run.sampler, run.preview.num_frames) for n in numbers]
            requests = [part.request for part in parts]
            found = run.sampler.generate(run.params, run.frozen, requests, sampling, rows_per_batch, same_rows)
            for place, frames in found:
                number, part = numbers[place], parts[place]
                yield number, _sample(part.assemble(frames), wanted[number], run, part.about(frames))
        for number, film in films.items():  # window after window, however long
            yield number, _sample(np.stack(list(film.frames)), wanted[number], run, film.about)

    def resolve(self, what: str | SampleOptions, number: int, changes: dict[str, Any]) -> SampleOptions:
        """Options with nothing left open."""
        options = SampleOptions(prompt=what) if isinstance(what, str) else what
        options = changed(options, **changes)
        if isinstance(what, str):
            if options.seed + number > MAX_SEED:
                raise UserError(f"the seed of sample {number} would be above {MAX_SEED}; choose a smaller seed")
            options = changed(options, seed=options.seed + number)
        return options.resolved(self.run.preview)

    def fitting(self, wanted: Sequence[SampleOptions], num_rows: int = 1) -> "Generator":
        """This generator with rows that hold the largest of `wanted`, and tiles where whole frames would be too large
        to decode (`memory.with_tiles`); `video` and `batch` see to that by themselves.

        Warns of prompts whose words the tokenizer never learned. Raises UserError for what the run cannot make, and
        for what does not fit the memory when `num_rows` rows are sampled at once.
        """
        resolved = [options.resolved(self.run.preview) for options in wanted]
        for options in resolved:
            check_size(options, self.run.sampler)
        # How long a video gets is known when its file is read; a window as of the preview stands for it until then.
        window = self.run.preview.num_frames
        requests = [(changed(o, frames=window) if o.is_of_video else o).request() for o in resolved]
        sampler = self.run.sampler.fitting(requests)
        if self.run.identity["tile"] is None:
            sampler = dataclasses.replace(sampler, codec=with_tiles(sampler.codec, requests))
        for sampling in {options.sampling() for options in wanted}:
            check_fits(sampler, requests, num_rows, sampling)
        prompts = sorted({p for r in requests for p in (r.prompt, r.negative_prompt) if p})
        foreign = [prompt for prompt in prompts if sampler.is_foreign(prompt)]
        if foreign:
            logger.warning(
                "%d of %d prompts, such as '%s', are mostly words that the tokenizer never learned and reads byte by "
                "byte: expect that they are not followed",
                *(len(foreign), len(prompts), foreign[0][:40]),
            )
        tile = 0 if sampler.codec.tiling is None else sampler.codec.tiling.tile
        run = dataclasses.replace(self.run, sampler=sampler, identity={**self.run.identity, "tile": tile})
        return Generator(run, self.expander)


def _sample(frames: Frames, options: SampleOptions, run: TrainedRun, about: dict[str, Any]) -> Sample:
    """What the canvas had more at the right and at the bottom is cut off."""
    assert isinstance(options.size, tuple) and options.fps is not None, "resolve them first"
    width, height = options.size
    return Sample(frames[:, :height, :width], options.fps, options, run.identity, about)
