"""Long videos from a run: frames as they are made, for a prompt, a storyboard, or a clip that goes on.

Everything goes through `windows.py`; memory does not grow with the duration, but for a clip that is extended, which is
read as a whole.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipeline.errors import UserError
from data_pipeline.video_io import write_video
from sora_jax.generation.conditions import read_clip, read_still
from sora_jax.generation.files import check_file, describe
from sora_jax.generation.loading import TrainedRun
from sora_jax.generation.modes import default_context
from sora_jax.generation.options import SampleOptions, changed
from sora_jax.generation.storyboard import Scene
from sora_jax.generation.windows import Shot, Windows, frames_before


@dataclass(frozen=True)
class Film:
    """`num_frames` frames, to be asked for once, the options and the run (`TrainedRun.identity`) that make them, and
    `about` what more a manifest says."""

    num_frames: int
    frames: Iterator[UInt8[np.ndarray, "Y X 3"]]
    options: SampleOptions
    identity: dict[str, Any]
    about: dict[str, Any]

    def save(self, path: Path | str) -> dict[str, Any]:
        """Writes the frames as they come, and returns the line of a manifest."""
        path = Path(path)
        check_file(path, self.num_frames)
        num_frames = write_video(path, self.frames, float(self.options.fps or 0))
        return {**describe(self.options, path, self.identity), "frames": num_frames, **self.about}


def make_film(
    run: TrainedRun,
    options: SampleOptions,
    num_frames: int | None = None,
    window: int = 0,
    scenes: Sequence[Scene] = (),
) -> Film:
    """A film by `options`, whose `frames` do not count, in windows of `window` frames (0: what the run's previews have)
    that overlap by their `context`.

    It shows the scenes, or else the options' prompt, with their images or on from their video; `num_frames` (None: to
    the end of the last scene's first window) are all, or of a video the new ones. Raises UserError before anything is
    sampled for what the run cannot make, and for options that long videos have not.
    """
    _check(options, num_frames, scenes)
    window = window or run.preview.num_frames
    options = changed(options, frames=1).resolved(run.preview)
    assert isinstance(options.size, tuple) and options.fps is not None
    windows = _windows(run, options, window)
    about = {"window": window, "overlap": windows.overlap * run.sampler.codec.config.temporal_compression}
    if options.video:
        return _extension(windows, options, num_frames or window, run.identity, about)
    shown = scenes or _of_images(options)
    total = num_frames or round(shown[-1].at_s * options.fps) + window
    parts = _parts(shown, options, total)
    films = (islice(windows.frames(shots, part=number), length) for number, (length, shots) in enumerate(parts))
    about |= {"shots": [dataclasses.asdict(scene) for scene in scenes]} if scenes else {}
    return Film(total, chain.from_iterable(films), options, run.identity, about)


def _check(options: SampleOptions, num_frames: int | None, scenes: Sequence[Scene]) -> None:
    if num_frames is not None and num_frames < 1:
        raise UserError(f"--frames is {num_frames}, but must be at least 1")
    unfit = {"--loop": options.loop, "--connect": options.connect, "--mask": options.mask}
    unfit |= {"--strength": options.strength is not None}
    unfit |= {"--image": scenes and options.image, "--video": scenes and options.video}
    for flag, value in unfit.items():
        if value:
            raise UserError(f"{flag} does not go with {'--storyboard' if scenes else '--window'}: leave one out")


def _windows(run: TrainedRun, options: SampleOptions, window: int) -> Windows:
    config, base = run.sampler.codec.config, options.request()
    legal = run.sampler.canvas_size(base.width, base.height)
    if legal != (base.width, base.height):
        raise UserError(
            f"--size is {base.width}x{base.height}, which windows cannot be cut to: ask for {legal[0]}x{legal[1]}"
        )
    latents = config.latent_shape(window, base.height, base.width)[0]
    context = options.context or default_context(run.sampler.codec, window, 1)
    overlap = max(1, (context - 1) // config.temporal_compression)
    windows = Windows(run.sampler, run.params, run.frozen, options.sampling(), base, latents, overlap)
    run.sampler.latent_shape(windows.request("", 0, None))
    return windows


def _of_images(options: SampleOptions) -> list[Scene]:
    """The prompt throughout, with its images at their times."""
    times = options.at or (0.0,) * len(options.image)
    scenes = [Scene(t, options.prompt, path) for t, path in sorted(zip(times, options.image, strict=True))]
    return scenes if scenes and scenes[0].at_s == 0 else [Scene(0.0, options.prompt), *scenes]


def _parts(scenes: Sequence[Scene], options: SampleOptions, total: int) -> list[tuple[int, list[Shot]]]:
    """(frames, shots) between hard cuts. Raises UserError for a shot that begins when the film is over."""
    assert isinstance(options.size, tuple) and options.fps is not None
    begins = [round(scene.at_s * options.fps) for scene in scenes]
    if begins[-1] >= total:
        raise UserError(
            f"the shot at {scenes[-1].at_s:g} s begins with frame {begins[-1]}, but the film has {total} at "
            f"{options.fps:g} fps: ask for more --frames"
        )
    firsts = [i for i, scene in enumerate(scenes) if i == 0 or scene.cut]
    found = []
    for first, end in zip(firsts, [*firsts[1:], len(scenes)], strict=True):
        shots = []
        for scene, begin in zip(scenes[first:end], begins[first:end], strict=True):
            still = read_still(Path(scene.image), options.size, options.fit) if scene.image else None
            shots.append(Shot(begin - begins[first], scene.prompt, still))
        found.append(((begins[end] if end < len(scenes) else total) - begins[first], shots))
    return found


def _extension(
    windows: Windows, options: SampleOptions, num_new: int, identity: dict[str, Any], about: dict[str, Any]
) -> Film:
    """The video and `num_new` frames after it, or before it."""
    assert isinstance(options.size, tuple) and options.fps is not None
    source = read_clip(Path(options.video), options.fps, options.size, options.fit)
    c, total = windows.sampler.codec.config.temporal_compression, len(source) + num_new
    if options.extend == "backward":
        new, seam = frames_before(windows, options.prompt, source, num_new), num_new
        return Film(total, chain(new, source), options, identity, {**about, "seams": [seam]})
    head = source[-1 - c * min(windows.overlap, (len(source) - 1) // c) :]
    new = islice(windows.frames([Shot(0, options.prompt)], head), len(head), len(head) + num_new)
    return Film(total, chain(source, new), options, identity, {**about, "seams": [len(source)]})
