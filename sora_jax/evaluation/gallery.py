"""A generator in every mode on real held-out clips: a sheet to look at, and whether what was known is the source's.

Nothing here says how good a sample is; that is for eyes. Known pixels are read back from the written files and compared
with the source's, pixel by pixel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from data_pipeline.video_io import Frames, decode, decode_record, resize_and_crop, write_video
from sora_jax.diffusion.generation import PreviewConfig
from sora_jax.evaluation.seams import known_error, measure_seams
from sora_jax.generation.api import Generator
from sora_jax.generation.options import SampleOptions, changed
from sora_jax.generation.upscale import draft_options, upscale_options, write_note

LONG_WINDOWS = 5
"""A long video is as long as so many windows."""
IMAGE_SCALES = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (1.5, 1.5))
"""Width and height of the images that are made, in those of the previews."""


@dataclass(frozen=True)
class Source:
    """Two clips as long as the trained window, as files, the first one's first and last frame, and a mask."""

    folder: Path
    clips: tuple[Frames, Frames]
    prompts: tuple[str, str]

    def file(self, name: str) -> str:
        return str(self.folder / name)


@dataclass(frozen=True, eq=False)
class Shown:
    """One result. `known` are the source's frames among it, in order; `kept` the pixels that are the source's of a clip
    that is made anew in part."""

    mode: str
    options: SampleOptions
    frames: Frames
    about: dict[str, Any] = field(default_factory=dict)
    known: UInt8[np.ndarray, "_ _ _ 3"] | None = None
    kept: Bool[np.ndarray, "_ _ _"] | None = None

    @property
    def is_known(self) -> Bool[np.ndarray, " T"]:
        """Which frames are the source's as a whole."""
        flags = np.zeros(len(self.frames), bool)
        for first, end in self.about.get("known_frames", ()):
            flags[first:end] = True
        return flags


def read_source(clips: Path, split: str, generator: Generator, folder: Path) -> Source:
    """Two clips of the split, at the previews' size and rate, cut to their length, as files in `folder`."""
    preview, reader = generator.run.preview, ShardReader(clips, "clip")
    numbers = reader.index.select(split)
    halves = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    pairs = [_first_long(reader, half, preview) for half in halves]
    for name, (_, frames) in zip("ab", pairs, strict=True):
        write_video(folder / f"{name}.mp4", frames, preview.fps)
    a, b = (decode(folder / f"{name}.mp4")[0] for name in "ab")  # as they are in the files
    mask = np.zeros((1, *a.shape[1:]), np.uint8)
    mask[:, mask.shape[1] // 4 : -(mask.shape[1] // 4), mask.shape[2] // 4 : -(mask.shape[2] // 4)] = 255
    later = np.zeros_like(a)
    later[len(a) // 3 : -(len(a) // 3)] = 255
    for name, pictures in (("first.png", a[:1]), ("last.png", a[-1:]), ("region.png", mask), ("time.mp4", later)):
        write_video(folder / name, pictures, preview.fps)
    return Source(folder, (a, b), (pairs[0][0], pairs[1][0]))


def _first_long(reader: ShardReader, numbers: np.ndarray, preview: PreviewConfig) -> tuple[str, Frames]:
    """(caption, frames) of the first clip that is long enough. Raises UserError if there is none."""
    for number in numbers:
        record = reader.read(int(number))
        frames, _ = decode_record(record, preview.num_frames, preview.fps)
        if len(frames) == preview.num_frames and record.captions:
            return record.captions[0].text, resize_and_crop(frames, preview.height, preview.width, allow_upscale=True)
    raise UserError(
        f"among {len(numbers)} clips none has a caption and {preview.num_frames} frames at {preview.fps:g} fps: choose "
        "another --split, or longer clips"
    )


def show_all(generator: Generator, source: Source, base: SampleOptions) -> Iterator[Shown]:
    """Every mode of one canvas at once, packed, and then those of several. `base` has what all share."""
    cases = list(_cases(generator, source, base))
    for number, sample in sorted(generator.batch([options for _, options, *_ in cases]), key=lambda found: found[0]):
        mode, options, known, kept = cases[number]
        yield Shown(mode, options, sample.frames, sample.about, known, kept)
    yield from _films(generator, source, base)
    assert isinstance(base.size, tuple)
    large, path = (2 * base.size[0], 2 * base.size[1]), source.folder / "draft.mp4"
    draft = draft_options(changed(base, size=large), generator.run)
    small = generator.video(draft.prompt, draft)
    write_note(path, small.save(path), large, Path("RUN"))
    yield Shown("draft", small.options, small.frames)
    options = upscale_options(path, changed(base, prompt="", size=None), None)
    refined = generator.video(options.prompt, options)
    yield Shown("draft, upscaled", refined.options, refined.frames)


def _cases(generator: Generator, source: Source, base: SampleOptions) -> Iterator[tuple]:
    """(mode, options, known frames, kept pixels) of what is made on one canvas, and of extensions."""
    (a, b), preview, last_s = source.clips, generator.run.preview, (len(source.clips[0]) - 1) / (base.fps or 1)
    first, last, clip, other = (source.file(name) for name in ("first.png", "last.png", "a.mp4", "b.mp4"))
    region = np.asarray(Image.open(source.file("region.png")).convert("L")) < 128
    later = decode(Path(source.file("time.mp4")))[0].mean(axis=-1) < 128
    yield "text", base, None, None
    for number, (across, down) in enumerate(IMAGE_SCALES):
        size = round(preview.width * across), round(preview.height * down)
        yield "image", changed(base, frames=1, size=size, seed=base.seed + number), None, None
    yield "animate", changed(base, image=first), a[:1], None
    yield "key frames", changed(base, image=(first, last), at=(0.0, last_s)), a[[0, -1]], None
    of_video = changed(base, video=clip, frames=None, extend="forward")
    yield "extend forward", of_video, a, None
    yield "extend backward", changed(of_video, extend="backward"), a, None
    yield "loop", changed(of_video, extend="", loop=True), a, None
    yield "connect", changed(of_video, extend="", connect=other), np.concatenate([a, b]), None
    for strength in (0.4, 0.7):
        edited = changed(of_video, extend="", strength=strength, prompt=source.prompts[1])
        yield f"edit, strength {strength}", edited, None, None
    inpainted = changed(of_video, extend="", mask=source.file("region.png"))
    yield "inpaint a region", inpainted, a, np.broadcast_to(region, a.shape[:3])
    yield "inpaint in time", changed(inpainted, mask=source.file("time.mp4")), a, later


def _films(generator: Generator, source: Source, base: SampleOptions) -> Iterator[Shown]:
    """A storyboard of two shots, the first with an image, and one prompt for several windows."""
    window, fps = generator.run.preview.num_frames, base.fps or 1
    story = source.folder / "story.yaml"
    story.write_text(
        f"- at: 0\n  prompt: {source.prompts[0]!r}\n  image: first.png\n"
        f"- at: {window / fps}\n  prompt: {source.prompts[1]!r}\n"
    )
    rest = changed(base, prompt="", frames=None)
    told = generator.film(options=rest, storyboard=story, frames=2 * window)
    options = changed(told.options, prompt=", then ".join(source.prompts))
    yield Shown("storyboard", options, np.stack(list(told.frames)), {"known_frames": [[0, 1]]}, source.clips[0][:1])
    long = generator.film(base.prompt, changed(base, frames=None), frames=LONG_WINDOWS * window)
    yield Shown("long, in windows", long.options, np.stack(list(long.frames)), long.about)


def check(shown: Shown, folder: Path, number: int) -> dict[str, Any]:
    """Writes the result as a video and, without loss, as a strip of its frames; says how far the strip's known pixels
    are from the source's (0: they are the same), and how large steps across seams are."""
    name = f"{number:02d}-{shown.mode.replace(',', '').replace(' ', '-')}"
    assert shown.options.fps is not None
    strip, height = folder / f"{name}.png", shown.frames.shape[1]
    Image.fromarray(np.concatenate(list(shown.frames))).save(strip)
    row: dict[str, Any] = {
        "mode": shown.mode,
        "prompt": shown.options.prompt,
        "frames": len(shown.frames),
        "file": strip.name,
    }
    if len(shown.frames) > 1:
        write_video(folder / f"{name}.mp4", shown.frames, shown.options.fps)
        row["file"] = f"{name}.mp4"
    read = np.asarray(Image.open(strip))
    frames = read.reshape(-1, height, *read.shape[1:])
    if shown.kept is not None and shown.known is not None:
        error = np.abs(frames[shown.kept].astype(np.int16) - shown.known[shown.kept])
        row |= {"known_pixels": int(shown.kept.sum()), "known_error": int(error.max())}
    elif shown.known is not None:
        row |= {"known_pixels": int(shown.known[..., 0].size)}
        row |= {"known_error": known_error(frames, shown.known, shown.about["known_frames"])}
    if seams := shown.about.get("seams"):
        found = measure_seams(frames, seams)
        row["seam_ratios"] = [round(ratio, 2) for ratio in found.ratios]
        row |= {"loop_ratio": round(found.loop_ratio, 2)} if shown.about.get("loops") else {}
    if shown.about.get("known_psnr") is not None:
        row["autoencoder_psnr_of_known"] = shown.about["known_psnr"]
    return row
