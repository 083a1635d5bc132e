"""A folder of variants of real clips, whose cuts, borders and duplicates are known because they were made here.

Every base clip is the first seconds of a file that holds one shot, scaled to one width; then come concatenations (hard
cuts, cross-fades, fades through black), flashes, bars, copies (byte by byte, re-encoded smaller, with bars), stills,
shaken, blurred and dark clips, and clips with subtitles.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from data_pipeline.curation.borders import Crop
from data_pipeline.frames import resample
from data_pipeline.video_frames import iterate_frames, probe
from data_pipeline.video_io import write_video

WIDTH, FPS, SECONDS, CRF = 320, 24.0, 2.5, 20

Video = UInt8[np.ndarray, "T Y X 3"]


@dataclass(frozen=True)
class Truth:
    """`segments`: (base clip, first frame, end) of each shot; gaps between them are transitions. `spoiled` names the
    limit that a clip should break, if one."""

    name: str
    kind: str
    segments: tuple[tuple[str, int, int], ...]
    crop: Crop
    spoiled: str = ""

    @property
    def cuts(self) -> list[tuple[int, int]]:
        """[end of a shot, start of the next]: equal for hard cuts."""
        return [(a[2], b[1]) for a, b in pairwise(self.segments)]


def make_variants(files: Sequence[Path], out: Path, seed: int = 0) -> list[Truth]:
    """Writes base clips and variants into `out` and returns their truth. `files` must hold one shot each."""
    rng = np.random.default_rng(seed)
    bases = {path.stem: base_clip(path) for path in files}
    truths = [_write(out, f"base_{name}", "base", video, [(name, len(video))]) for name, video in bases.items()]
    names = list(bases)
    for number in range(len(names) // 3):
        picked = [names[i] for i in rng.choice(len(names), 3, replace=False)]
        joined = [_to_size(bases[name], 180, WIDTH) for name in picked]
        for kind, join in JOINS.items():
            video, spans = join(joined)
            segments = [(name, *span) for name, span in zip(picked, spans, strict=True)]
            truths.append(_write(out, f"{kind}_{number:03d}", kind, video, segments))
    for number, name in enumerate(rng.permutation(names)):
        kind, change = CHANGES[number % len(CHANGES)]
        video, crop = change(bases[str(name)])
        truth = _write(out, f"{kind}_{name}", kind, video, [(str(name), len(video))], crop)
        truths.append(dataclasses.replace(truth, spoiled=SPOILED.get(kind, "")))
    return truths


def base_clip(path: Path) -> Video:
    """The first `SECONDS` at the file's own rate (which is written as `FPS`), `WIDTH` wide."""
    info = probe(path)
    count = min(info.num_frames, int(SECONDS * FPS))
    height = 2 * round(info.height * WIDTH / info.width / 2)
    frames = resample(iterate_frames(path), info.fps, count, 0.25 / info.fps)
    shown = (frame.scaled(height, WIDTH) if frame.scaled else _resized(frame.rgb(), height, WIDTH) for frame in frames)
    return np.stack(list(shown))


def _write(out: Path, name: str, kind: str, video: Video, segments: Sequence[tuple], crop: Crop | None = None) -> Truth:
    """A segment is (base, number of frames) for a whole file, or (base, first, end)."""
    write_video(out / f"{name}.mp4", video, FPS, crf=32 if kind == "reencoded" else CRF)
    spans = tuple((s[0], 0, s[1]) if len(s) == 2 else tuple(s) for s in segments)
    return Truth(f"{name}.mp4", kind, spans, crop or (0, 0, *video.shape[1:3]))


def _resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _to_size(video: Video, height: int, width: int) -> Video:
    return np.stack([_resized(frame, height, width) for frame in video])


Joined = tuple[Video, list[tuple[int, int]]]


def _spans(lengths: Sequence[int], gap: int) -> list[tuple[int, int]]:
    """[start, end) of shots with `gap` frames of transition between them."""
    starts = np.cumsum([0, *(length + gap for length in lengths[:-1])])
    return [(int(start), int(start + length)) for start, length in zip(starts, lengths, strict=True)]


def _hard(videos: list[Video]) -> Joined:
    return np.concatenate(videos), _spans([len(video) for video in videos], 0)


def _dissolve(videos: list[Video], length: int = 20) -> Joined:
    """Cross-fades that take `length` frames of both neighbours."""
    weight = (np.arange(length) + 1)[:, None, None, None] / (length + 1)
    parts = []
    for i, video in enumerate(videos):
        begin, end = length if i else 0, len(video) - (length if i + 1 < len(videos) else 0)
        parts.append(video[begin:end])
        if i + 1 < len(videos):
            parts.append((video[end:] * (1 - weight) + videos[i + 1][:length] * weight).astype(np.uint8))
    return np.concatenate(parts), _spans([len(part) for part in parts[::2]], length)


def _fade(videos: list[Video], length: int = 10, black: int = 6) -> Joined:
    """Out to black and in again; the ramps belong to their shots, the black frames to none."""
    ramp = np.linspace(1, 0, length)[:, None, None, None]
    parts = []
    for i, video in enumerate(videos):
        shown = video.astype(np.float32)
        if i:
            shown[:length] *= ramp[::-1]
        if i + 1 < len(videos):
            shown[-length:] *= ramp
        parts.append(shown.astype(np.uint8))
        if i + 1 < len(videos):
            parts.append(np.zeros((black, *video.shape[1:]), np.uint8))
    return np.concatenate(parts), _spans([len(part) for part in parts[::2]], black)


JOINS = {"cuts": _hard, "dissolve": _dissolve, "fade": _fade}


def _whole(video: Video) -> tuple[Video, Crop]:
    return video, (0, 0, *video.shape[1:3])


def _letterbox(video: Video) -> tuple[Video, Crop]:
    bar = video.shape[1] // 8 // 2 * 2
    padded = np.pad(video, ((0, 0), (bar, bar), (0, 0), (0, 0)))
    return padded, (bar, 0, *video.shape[1:3])


def _pillarbox(video: Video) -> tuple[Video, Crop]:
    bar = video.shape[2] // 6 // 2 * 2
    return np.pad(video, ((0, 0), (0, 0), (bar, bar), (0, 0))), (0, bar, *video.shape[1:3])


def _smaller(video: Video) -> tuple[Video, Crop]:
    return _whole(_to_size(video, video.shape[1] * 3 // 4 // 2 * 2, 240))


def _flash(video: Video) -> tuple[Video, Crop]:
    lit = video.copy()
    middle = len(video) // 2
    lit[middle : middle + 2] = (255 - (255 - lit[middle : middle + 2].astype(int)) // 8).astype(np.uint8)
    return _whole(lit)


def _still(video: Video) -> tuple[Video, Crop]:
    return _whole(np.repeat(video[:1], len(video), axis=0))


def _shaken(video: Video) -> tuple[Video, Crop]:
    """Steps of a few hundredths of the picture at random, each frame anew."""
    steps = np.random.default_rng(0).integers(-10, 11, (len(video), 2))
    moved = [np.roll(frame, tuple(step), axis=(0, 1))[12:-12, 12:-12] for frame, step in zip(video, steps, strict=True)]
    return _whole(np.stack(moved))


def _blurred(video: Video) -> tuple[Video, Crop]:
    return _whole(np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(7))) for f in video]))


def _dark(video: Video) -> tuple[Video, Crop]:
    return _whole((video * 0.06).astype(np.uint8))


def captioned(video: Video) -> tuple[Video, Crop]:
    """A line of white letters with black outlines near the bottom, as subtitles are burnt in, for half of the time."""
    height, width = video.shape[1:3]
    font = ImageFont.load_default(size=max(11, height // 13))
    place, outline = (width // 12, int(0.82 * height)), max(1, height // 150)
    begin, frames = len(video) // 4, list(video)
    for number, frame in enumerate(video[begin : begin + len(video) // 2], begin):
        image = Image.fromarray(frame)
        ImageDraw.Draw(image).text(
            place, "What are you doing here?", "white", font, stroke_width=outline, stroke_fill=0
        )
        frames[number] = np.asarray(image)
    return _whole(np.stack(frames))


CHANGES = (
    ("copy", _whole),
    ("reencoded", _smaller),
    ("letterbox", _letterbox),
    ("flash", _flash),
    ("pillarbox", _pillarbox),
    ("still", _still),
    ("shaken", _shaken),
    ("blurred", _blurred),
    ("dark", _dark),
    ("captioned", captioned),
)
SPOILED = {
    "still": "static",
    "shaken": "shaking",
    "blurred": "blurred",
    "dark": "badly exposed",
    "captioned": "text over the picture",
}
