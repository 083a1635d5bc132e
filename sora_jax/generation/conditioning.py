"""The options that condition a sample on files, and the canvas that is sampled for them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipeline.errors import UserError
from sora_jax.diffusion.generation import PackedSampler, Request
from sora_jax.generation import modes
from sora_jax.generation.conditions import FITS, read_clip, read_mask, read_still
from sora_jax.generation.modes import Frames, Plan

File = str | Path | None
Files = File | Sequence[str | Path]
DIRECTIONS = ("forward", "backward")
OF_VIDEO = {"extend": "", "loop": False, "connect": "", "strength": None, "mask": "", "at": ()}


@dataclass(frozen=True, kw_only=True)
class ConditionOptions:
    """Files that a sample begins from, each an image or a video: `image` at the times `at` in seconds, or `video`.

    A video is extended, looped, connected to another, or edited from a `strength` on, where `mask` is white. `context`:
    how many known frames the model sees at a seam (0: about half of what it was trained on). `fit`: how pictures of
    another shape come to the canvas' size. Raises UserError for options that contradict each other.
    """

    image: Files = ()
    at: float | Sequence[float] | None = ()
    video: File = ""
    extend: str | None = ""
    loop: bool = False
    connect: File = ""
    strength: float | None = None
    mask: File = ""
    context: int = 0
    fit: str = "crop"

    def __post_init__(self) -> None:
        for name in ("video", "extend", "connect", "mask"):
            object.__setattr__(self, name, str(getattr(self, name) or ""))
        object.__setattr__(self, "image", tuple(str(path) for path in _several(self.image)))
        object.__setattr__(self, "at", tuple(float(at_s) for at_s in _several(self.at)))
        self._check()

    def _check(self) -> None:
        asked, images, times = self._asked(), len(_several(self.image)), len(_several(self.at))
        if self.image and (self.video or asked):
            raise UserError(f"--image does not go with {(['--video'] if self.video else asked)[0]}: leave one out")
        if self.video and not asked:
            raise UserError("say what to make of --video: --extend, --loop, --connect, --strength or --mask")
        if asked and not self.video:
            raise UserError(f"{asked[0]} needs a video: name its file with --video")
        if len(asked) > 1 and set(asked) != {"--strength", "--mask"}:
            raise UserError(f"{' and '.join(asked)} are two things at once: make one after the other")
        if self.extend and self.extend not in DIRECTIONS:
            raise UserError(f"--extend is '{self.extend}', which is none of {', '.join(DIRECTIONS)}")
        if times != images and (times or images > 1):
            raise UserError(f"there are {images} --image and {times} --at: give each image its time")
        if self.strength is not None and not 0.0 < self.strength <= 1.0:
            raise UserError(f"--strength is {self.strength}, but must be above 0 (the source) and at most 1 (all new)")
        if self.context < 0:
            raise UserError(f"--context is {self.context}, but must be at least 1, or 0 for a default")
        if self.fit not in FITS:
            raise UserError(f"--fit is '{self.fit}', which is none of {', '.join(FITS)}")

    def _asked(self) -> list[str]:
        """Flags that say what to make of a video."""
        named = {
            "--extend": self.extend, "--loop": self.loop, "--connect": self.connect,
            "--strength": self.strength is not None, "--mask": self.mask,
        }  # fmt: skip
        return [flag for flag, value in named.items() if value]

    def conditions(self) -> dict[str, Any]:
        """What was asked for, for a manifest: the options that are not their defaults."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(ConditionOptions)}
        return {name: value for name, (value, default) in values.items() if value != default}

    @property
    def adds_to_video(self) -> bool:
        """The result is a whole video and new frames, so at least two."""
        return bool(self.extend or self.loop or self.connect)

    @property
    def is_of_video(self) -> bool:
        """The result's length follows the video's; `frames` counts what is new, or what is edited."""
        return bool(self.video)


@dataclass(frozen=True, eq=False)
class Part:
    """The canvas of a sample, and what becomes of it."""

    request: Request
    plan: Plan | None = None

    def assemble(self, frames: Frames) -> UInt8[np.ndarray, "N Y X 3"]:
        """The result, from the canvas' frames."""
        return frames if self.plan is None else self.plan.assemble(frames)

    def about(self, frames: Frames) -> dict[str, Any]:
        """For a manifest: where known and new frames meet, which are known, and how well the autoencoder codes them."""
        if self.plan is None:
            return {}
        psnr = self.plan.autoencoder_psnr(frames)
        return {
            "seams": list(self.plan.seams),
            "known_frames": [list(run) for run in self.plan.known_frames],
            "loops": self.plan.loops,
            "known_psnr": None if psnr is None else round(psnr, 2),
        }


def check_size(options: Any, sampler: PackedSampler) -> None:
    """Raises UserError for a size or rate that no model has, before any file is read."""
    sampler.latent_shape(dataclasses.replace(options, frames=1, image=(), video="", **OF_VIDEO).request())


def make_part(options: Any, sampler: PackedSampler, window_frames: int) -> Part:
    """The canvas for `SampleOptions` that are resolved, but for the frames of a video; extensions are films.

    `window_frames`: what the model was trained on. Reads and encodes the files. Raises UserError for what cannot be
    read, and for frames, times and masks that do not suit what was read.
    """
    check_size(options, sampler)
    if options.image:
        stills = [read_still(Path(path), options.size, options.fit) for path in options.image]
        stills = [on_canvas(still, options, sampler) for still in stills]
        pairs = list(zip(stills, options.at or (0.0,), strict=True))
        plan = modes.animate(sampler.codec, sampler.layout, pairs, options.frames, options.fps)
        return Part(_request(options, plan), plan)
    if not options.video:
        return Part(options.request())
    source = on_canvas(_read(options, options.video), options, sampler)
    if options.loop or options.connect:
        plan = _bridge(options, sampler, window_frames, source)
    else:
        plan = _edit(options, sampler, source)
    return Part(_request(options, plan), plan)


def _request(options: Any, plan: Plan) -> Request:
    request = dataclasses.replace(options, frames=plan.num_frames).request()
    return dataclasses.replace(request, canvas=plan.canvas)


def _bridge(options: Any, sampler: PackedSampler, window_frames: int, source: Frames) -> Plan:
    other = on_canvas(_read(options, options.connect), options, sampler) if options.connect else source
    lengths = {options.video: len(source), **({options.connect: len(other)} if options.connect else {})}
    context = context_of(options, sampler, window_frames, 2, lengths)
    fallback = modes.room(sampler.codec, window_frames, context, "between")
    num_new = fallback if options.frames is None else _at_least_one(options.frames)
    if options.loop:
        return modes.loop(sampler.codec, sampler.layout, source, num_new, context)
    return modes.connect(sampler.codec, sampler.layout, source, other, num_new, context)


def _edit(options: Any, sampler: PackedSampler, source: Frames) -> Plan:
    if options.frames is not None and _at_least_one(options.frames) > len(source):
        raise UserError(
            f"--frames is {options.frames}, but {options.video} shows {len(source)} at {options.fps:g} fps: "
            "ask for at most that, or extend it"
        )
    masked = None
    if options.mask:
        path, size = Path(options.mask), options.size
        masked = read_mask(path, Path(options.video), len(source), options.fps, size, options.fit)[: options.frames]
        masked = on_canvas(masked, options, sampler)
    strength = 1.0 if options.strength is None else options.strength
    return modes.edit(sampler.codec, sampler.layout, source[: options.frames], strength, masked)


def on_canvas(pictures: np.ndarray, options: Any, sampler: PackedSampler) -> np.ndarray:
    """Pictures [… Y, X, 3], or masks [T, Y, X], of the size asked for, on the canvas that this is made on: where it has
    more, at the right and the bottom, their last pixels go on. In the end it is cut off."""
    width, height = sampler.canvas_size(*options.size)
    colours = 0 if pictures.dtype == bool else 1
    more = [(0, height - options.size[1]), (0, width - options.size[0]), *[(0, 0)] * colours]
    return np.pad(pictures, [*[(0, 0)] * (pictures.ndim - len(more)), *more], mode="edge")


def _read(options: Any, path: str) -> Frames:
    return read_clip(Path(path), options.fps, options.size, options.fit)


def context_of(
    options: Any, sampler: PackedSampler, window_frames: int, num_seams: int, lengths: dict[str, int]
) -> int:
    """Known frames at each of so many seams. Raises UserError for more than one of the videos shows (`lengths`)."""
    for path, length in lengths.items():
        if options.context > length:
            raise UserError(
                f"--context is {options.context} frames, but {path} shows {length} at {options.fps:g} fps: "
                "ask for at most that"
            )
    return options.context or modes.default_context(sampler.codec, window_frames, num_seams)


def _at_least_one(frames: int) -> int:
    if frames < 1:
        raise UserError(f"--frames is {frames}, but must be at least 1")
    return frames


def _several(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)
