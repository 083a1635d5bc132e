"""Long videos from a run: frames as they are made, for a prompt, a storyboard, or a clip that goes on.

Everything goes through `windows.py`; memory does not grow with the duration, but for a clip that is extended, which is
read as a whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipeline.errors import UserError
from data_pipeline.video_io import write_video
from sora_jax.diffusion.generation import PackedSampler
from sora_jax.diffusion.prompting import count_frames
from sora_jax.generation.conditioning import context_of, on_canvas
from sora_jax.generation.conditions import read_clip, read_still
from sora_jax.generation.files import check_file, describe
from sora_jax.generation.loading import TrainedRun
from sora_jax.generation.modes import Frames, coding_psnr, head, tail
from sora_jax.generation.options import SampleOptions, changed
from sora_jax.generation.storyboard import Scene
from sora_jax.generation.windows import Shot, Windows, frames_before

Picture = UInt8[np.ndarray, "Y X 3"]


@dataclass(frozen=True)
class Film:
    """`num_frames` frames, to be asked for once, the options and the run (`TrainedRun.identity`) that make them, and
    `about` what more a manifest says."""

    num_frames: int
    frames: Iterator[Picture]
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
    options = changed(options, frames=1).resolved(run.preview)
    assert isinstance(options.size, tuple) and options.fps is not None
    if options.video:
        return _extension(run, options, num_frames, window)
    windows, about = _windows(run, options, window)
    shown = scenes or _of_images(options)
    total = num_frames or round(shown[-1].at_s * options.fps) + about["window"]
    parts = _parts(shown, options, run.sampler, total)
    films = (islice(windows.frames(shots, part=number), length) for number, (length, shots) in enumerate(parts))
    about |= {"shots": [scene.described() for scene in scenes]} if scenes else {}
    return Film(total, _cut(chain.from_iterable(films), options), options, run.identity, about)


def _check(options: SampleOptions, num_frames: int | None, scenes: Sequence[Scene]) -> None:
    if num_frames is not None and num_frames < 1:
        raise UserError(f"--frames is {num_frames}, but must be at least 1")
    unfit = {"--loop": options.loop, "--connect": options.connect, "--mask": options.mask}
    unfit |= {"--strength": options.strength is not None}
    unfit |= {"--image": scenes and options.image, "--video": scenes and options.video}
    for flag, value in unfit.items():
        if value:
            raise UserError(f"{flag} does not go with {'--storyboard' if scenes else '--window'}: leave one out")


def _windows(
    run: TrainedRun, options: SampleOptions, window: int, source: Frames | None = None
) -> tuple[Windows, dict[str, Any]]:
    """The windows, and what a manifest says of them. Where `window` is 0 they hold what is known and a latent more."""
    codec, base = run.sampler.codec, options.request()
    num_frames, c = window or run.preview.num_frames, codec.config.temporal_compression
    latents = codec.config.latent_shape(num_frames, *run.sampler.canvas_size(base.width, base.height)[::-1])[0]
    context = context_of(options, run.sampler, num_frames, 1, {} if source is None else {options.video: len(source)})
    overlap = max(1, (context - 1) // c)
    latents = latents if window else max(latents, overlap + 2)
    windows = Windows(run.sampler, run.params, run.frozen, options.sampling(), base, latents, overlap)
    run.sampler.latent_shape(windows.request("", 0, None))
    return windows, {"window": count_frames(codec, latents), "overlap": c * overlap}


def _of_images(options: SampleOptions) -> list[Scene]:
    """The prompt throughout, with its images at their times."""
    times = options.at or (0.0,) * len(options.image)
    scenes = [Scene(t, options.text, path) for t, path in sorted(zip(times, options.image, strict=True))]
    return scenes if scenes and scenes[0].at_s == 0 else [Scene(0.0, options.text), *scenes]


def _parts(
    scenes: Sequence[Scene], options: SampleOptions, sampler: PackedSampler, total: int
) -> list[tuple[int, list[Shot]]]:
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
            still = None if still is None else on_canvas(still, options, sampler)
            shots.append(Shot(begin - begins[first], scene.text, still))
        found.append(((begins[end] if end < len(scenes) else total) - begins[first], shots))
    return found


def _extension(run: TrainedRun, options: SampleOptions, num_new: int | None, window: int) -> Film:
    """The video and `num_new` frames after it, or before it: as many as the first window has room for, if None."""
    assert isinstance(options.size, tuple) and options.fps is not None
    source = read_clip(Path(options.video), options.fps, options.size, options.fit)
    source, codec = on_canvas(source, options, run.sampler), run.sampler.codec
    windows, about = _windows(run, options, window, source)
    if is_backward := options.extend == "backward":
        known, _ = tail(codec, source, about["overlap"])
        room = windows.room_before(len(known))
        count = num_new or room
        seams = sorted({count, *range(count - room, 0, -windows.room_before(about["overlap"]))})
        frames = chain(frames_before(windows, options.text, source, count), source)
    else:
        known = head(codec, source, 1 + about["overlap"])
        count, seams = num_new or about["window"] - len(known), [len(source)]
        new = islice(windows.frames([Shot(0, options.text)], known), len(known), len(known) + count)
        frames = chain(source, new)
    first = count if is_backward else 0
    about |= {
        "seams": seams, "known_frames": [[first, first + len(source)]], "loops": False,
        "known_psnr": round(coding_psnr(codec, known, is_first=not is_backward), 2),
    }  # fmt: skip
    return Film(len(source) + count, _cut(frames, options), options, run.identity, about)


def _cut(frames: Iterable[Picture], options: SampleOptions) -> Iterator[Picture]:
    """Without what the canvas has more at the right and at the bottom."""
    assert isinstance(options.size, tuple)
    width, height = options.size
    return (frame[:height, :width] for frame in frames)
