"""One input file to clips, or to the reason why not.

Every frame is decoded once. What plays cleanly and is short enough keeps its own bytes. The rest is encoded again as
`REENCODED`: windows of long videos, and the longest undamaged run of a broken one, if that is at least half of the
frames that the file promises. Rejected: no picture, encrypted, mostly damaged, noise, a rate, size or clock that is
absurd.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.frames import Frame, VideoInfo, frame_rate, resample
from data_pipeline.video_frames import iterate_frames, probe
from data_pipeline.video_io import encode_video

REENCODED = "mp4, H.264 crf 14, gop 8, 1 thread, 8-bit sRGB, square pixels"
CRF = 14
MIN_FPS, MAX_FPS = 1.0, 240.0
MIN_SIDE_PX = 8
# A slide may be shown for a minute; a broken clock jumps by days, and holding a frame for them would fill the disk.
MAX_HOLD_S = 120.0
MIN_CLEAN_SHARE = 0.5
# Neighbouring pixels of pictures resemble each other (correlation 0.8 and more); of noise they do not.
NOISE_CORRELATION = 0.1


@dataclass(frozen=True)
class Clip:
    """A clip before it has captions, group and split. `video` is its file, None where the source's own bytes stay."""

    suffix: str
    video: Path | None
    media_type: str
    fps: float
    num_frames: int
    height: int
    width: int
    colour: dict[str, str]
    scores: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """What became of an input: its clips, or why it was rejected; `notes` say what its player had to do."""

    checksum: str
    clips: tuple[Clip, ...] = ()
    rejected: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class _Scan:
    """Times and damage of every decoded frame, and why decoding ended early, if it did."""

    times_s: list[float] = field(default_factory=list)
    corrupt: list[bool] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    error: str = ""


class _Unwritable(Exception):
    """Not the input is at fault, but the disk that the clips go to."""

    def __init__(self, reason: OSError):
        self.reason = reason


def ingest(path: Path, max_seconds: float, staged: Path) -> Verdict:
    """The verdict on one file; clips that are encoded again are written to files whose names begin with `staged`.

    Raises nothing for bad files: that is a verdict too. Raises `OSError` where `staged` cannot be written.
    """
    if path.is_dir():
        return Verdict("", rejected="the folder cannot be read: check its permissions")
    if not path.is_file():
        return Verdict("", rejected="it is a dangling link or no regular file")
    try:
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return Verdict("", rejected=f"the file cannot be read: {error.strerror or error}")
    try:
        return _judge(path, checksum, max_seconds, staged)
    except UserError as error:
        return Verdict(checksum, rejected=str(error).removeprefix(f"{path} "))
    except MemoryError:
        return Verdict(checksum, rejected="its frames do not fit into memory")
    except _Unwritable as error:
        raise error.reason from error
    except Exception as error:  # nothing that a file makes a library do may end the build
        return Verdict(checksum, rejected=f"reading it fails: {type(error).__name__}: {error}")


def _judge(path: Path, checksum: str, max_seconds: float, staged: Path) -> Verdict:
    if path.stat().st_size == 0:
        raise UserError("the file is empty")
    info = probe(path)
    scan = _scan(path)
    if len(scan.sizes) > 1:
        raise UserError(f"its frame size changes midway, among {sorted(scan.sizes)}")
    first, last = _clean_run(scan.corrupt)
    promised = max(info.num_frames if info.constant_rate else 0, len(scan.times_s))
    if (last - first) < MIN_CLEAN_SHARE * promised:
        why = scan.error or f"{sum(scan.corrupt)} of {len(scan.corrupt)} frames are damaged"
        raise UserError(f"only {last - first} of {promised} frames play cleanly ({why})")
    times_s = scan.times_s[first:last]
    fps, constant = (info.fps, True) if len(times_s) == 1 else frame_rate(times_s, info.fps)
    info = replace(info, fps=fps, constant_rate=constant)
    _check_sanity(path, info, first, max(np.diff(times_s), default=0.0))
    whole = not scan.error and last - first == len(scan.times_s)
    num_frames = len(times_s) if constant else max(1, round((times_s[-1] - times_s[0]) * fps) + 1)
    scores = {} if whole else {"clean_share": round((last - first) / promised, 6)}
    clip = Clip("", None, info.media_type, info.fps, num_frames, info.height, info.width, info.colour, scores)
    count = -(-num_frames // max(1, int(max_seconds * info.fps)))
    if whole and count == 1:
        return Verdict(checksum, (clip,), notes=tuple(_handling(info)))
    notes = [] if whole else [f"the undamaged {100 * scores['clean_share']:.0f}% encoded again"]
    notes += [f"cut into {count} windows, encoded again"] if count > 1 else []
    return Verdict(checksum, _windows(path, clip, times_s[0], count, staged), notes=(*_handling(info), *notes))


def _scan(path: Path) -> _Scan:
    scan = _Scan()
    try:
        for frame in iterate_frames(path):
            scan.times_s.append(frame.time_s)
            scan.corrupt.append(frame.corrupt)
            scan.sizes.add(frame.size)
    except UserError as error:
        if not scan.times_s or "encrypted" in str(error):
            raise
        scan.error = str(error).removeprefix(f"{path} ")
    return scan


def _clean_run(corrupt: list[bool]) -> tuple[int, int]:
    """[first, last) of the longest run of undamaged frames."""
    edges = [-1, *(number for number, damaged in enumerate(corrupt) if damaged), len(corrupt)]
    length, start = max((after - before - 1, -before) for before, after in pairwise(edges))
    return 1 - start, 1 - start + length


def _check_sanity(path: Path, info: VideoInfo, first: int, hold_s: float) -> None:
    """Raises `UserError` for rates, sizes and pictures that no camera makes; `hold_s`: the longest wait for a frame."""
    if not MIN_FPS <= info.fps <= MAX_FPS:
        raise UserError(f"its rate of {info.fps:g} frames/s is not within {MIN_FPS:g} to {MAX_FPS:g}")
    if min(info.height, info.width) < MIN_SIDE_PX:
        raise UserError(f"its frames of {info.width}x{info.height} are smaller than {MIN_SIDE_PX} pixels")
    if hold_s > MAX_HOLD_S:
        raise UserError(f"one frame is shown for {hold_s:.0f} s, longer than {MAX_HOLD_S:.0f} s: its clock is broken")
    samples = [frame.rgb() for frame in islice(iterate_frames(path), first, first + 4)]
    if all(_is_noise(sample) for sample in samples):
        raise UserError("it decodes to noise: encrypted or damaged beyond use")


def _is_noise(rgb: np.ndarray) -> bool:
    grey = rgb.astype(np.float32).mean(-1)
    centred = grey - grey.mean()
    variance = float((centred**2).mean())
    across, down = float((centred[:, 1:] * centred[:, :-1]).mean()), float((centred[1:] * centred[:-1]).mean())
    return variance > 100 and max(across, down) < NOISE_CORRELATION * variance


def _handling(info: VideoInfo) -> Iterator[str]:
    if info.geometry:
        yield info.geometry
    if not info.constant_rate:
        yield f"variable frame rate played at {info.fps:.5g}/s"
    if info.colour.get("handling", "as is") != "as is":
        yield info.colour["handling"]
    if info.has_audio:
        yield "audio ignored"


def reencoded_colour(source: dict[str, str]) -> dict[str, str]:
    """The colour of what `REENCODED` says, with that of its source."""
    return {
        "primaries": "bt709",
        "transfer": "bt709",
        "matrix": "bt709",
        "range": "limited",
        "handling": "as is",
        "source": ", ".join(f"{name} {value}" for name, value in source.items()),
    }


def _windows(path: Path, clip: Clip, start_s: float, count: int, staged: Path) -> tuple[Clip, ...]:
    """The clean run of `clip.num_frames` frames, which begins at `start_s`, in windows of nearly equal length."""
    edges = [round(window * clip.num_frames / count) for window in range(count + 1)]
    shown = resample(_until_damage(path, start_s), clip.fps, clip.num_frames, 0.25 / clip.fps, start_s)
    windows = []
    for window, (begin, end) in enumerate(pairwise(edges)):
        pixels = (frame.rgb() for frame in islice(shown, end - begin))
        video = encode_video(pixels, clip.fps, "mp4", crf=CRF)
        place = {"source_start_s": round(start_s + begin / clip.fps, 6)} if count > 1 or start_s else {}
        windows.append(
            replace(
                clip,
                suffix=f"#{window:04d}" if count > 1 else "",
                video=_written(staged.with_name(f"{staged.name}.{window:04d}"), video),
                media_type="video/mp4",
                num_frames=end - begin,
                colour=reencoded_colour(clip.colour),
                scores={**clip.scores, **place},
            )
        )
    return tuple(windows)


def _written(path: Path, video: bytes) -> Path:
    try:
        path.write_bytes(video)
    except OSError as error:
        raise _Unwritable(error) from error
    return path


def _until_damage(path: Path, start_s: float) -> Iterator[Frame]:
    """Frames from `start_s` on, up to the first damage; an error at the end of a clean run ends it quietly."""
    try:
        late_enough = (frame for frame in iterate_frames(path) if frame.time_s >= start_s)
        yield from takewhile(lambda frame: not frame.corrupt, late_enough)
    except UserError:
        return


def verdict_to_plain(verdict: Verdict) -> dict[str, Any]:
    """For msgpack, without the videos."""
    clips = [{**vars(clip), "video": clip.video and clip.video.name} for clip in verdict.clips]
    return {**vars(verdict), "clips": clips}


def verdict_from_plain(plain: dict[str, Any], folder: Path) -> Verdict:
    """`folder` holds the videos."""
    clips = tuple(Clip(**{**clip, "video": clip["video"] and folder / clip["video"]}) for clip in plain["clips"])
    return Verdict(**{**plain, "clips": clips, "notes": tuple(plain["notes"])})
