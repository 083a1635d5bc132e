"""What an engine runs: each task takes a source, stages its result, and is skipped if that is there.

A result's name is a hash of everything that it depends on: the source and its stamp, the options of the stage, the
version of the code. So a run that was killed goes on, other limits on what was measured cost nothing, and whatever ran
twice wrote the same file.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipeline.curation.candidate import Candidate, Examined, Reason, Rejected, from_plain, to_plain
from data_pipeline.curation.config import CurationConfig, ModelConfig
from data_pipeline.curation.examine import EXAMINE_VERSION, examine
from data_pipeline.curation.fetch import Unfetched, fetched, whole_bytes_of
from data_pipeline.curation.sources import Source
from data_pipeline.errors import UserError
from data_pipeline.frames import keep_frames
from data_pipeline.ingest import CRF, REENCODED, reencoded_colour
from data_pipeline.storage import Storage
from data_pipeline.video_io import encode_video, iterate_clip

Work = tuple[Source, tuple[Candidate, ...]]
"""A source and those of its candidates that a task is for."""

Models = dict[str, ModelConfig]
"""By what they give: `score NAME`, `embedder`, `captioner`."""


def examined_name(cfg: CurationConfig, source: Source) -> str:
    parts = [dataclasses.asdict(cfg.shots), cfg.filters.max_duration_s, EXAMINE_VERSION, REENCODED]
    return _hash("examined", source.source_id, source.stamp, *parts)


def examine_source(cfg: CurationConfig, staging: str, source: Source) -> Rejected | None:
    """Stages the `Examined`. Of a source that cannot be fetched nothing is staged, as it may come back: returns why."""
    store, name = Storage(staging), examined_name(cfg, source)
    if store.exists(name):
        return None
    try:
        with fetched(source) as path, TemporaryDirectory() as scratch:
            found = examine(path, source.source_id, cfg, Path(scratch, name))
            for repaired in {candidate.repaired for candidate in found.candidates} - {""}:
                store.write(repaired, Path(scratch, repaired).read_bytes())
    except Unfetched as error:
        return Rejected("probe", Reason.UNREADABLE, str(error))
    store.write(name, msgpack.packb(to_plain(found)))
    return None


def load_examined(store: Storage, name: str) -> Examined:
    return from_plain(msgpack.unpackb(store.read(name)))


def scorers(cfg: CurationConfig) -> Models:
    """The models whose word decides on duplicates and before them."""
    named = {f"score {name}": model for name, model in cfg.scores.items()}
    return {name: model for name, model in {**named, "embedder": cfg.embedder}.items() if model.function}


def captioners(cfg: CurationConfig) -> Models:
    """The one that there may be. Its words are for the clips that stay."""
    return {"captioner": cfg.captioner} if cfg.captioner.function else {}


def models_name(models: Models, clip: Candidate, stamp: str) -> str:
    asked = sorted((name, model.function, model.num_frames) for name, model in models.items())
    return _hash("models", *_place(clip, stamp), clip.crop, asked)


def run_models(models: Models, staging: str, work: Work) -> list[tuple[int, str]]:
    """Every model on every candidate; stages what each said, or why it failed. Returns (start, why) of candidates that
    could not be read."""
    source, clips = work
    store = Storage(staging)
    functions = {name: load_function(model.function) for name, model in models.items()}
    names = {clip.start: models_name(models, clip, source.stamp) for clip in clips}
    missing = [clip for clip in clips if not store.exists(names[clip.start])]
    try:
        for clip, frames in _clips_of(store, source, missing):
            store.write(names[clip.start], msgpack.packb(_model_results(models, functions, clip, frames)))
    except UserError as error:
        return [(clip.start, str(error)) for clip in missing if not store.exists(names[clip.start])]
    return []


def accelerators(models: Models) -> float:
    """What a task of `run_models` asks for."""
    return max((model.accelerators for model in models.values()), default=0.0)


def _model_results(
    models: Models, functions: dict[str, Callable], clip: Candidate, frames: Iterator[np.ndarray]
) -> dict[str, Any]:
    """`measures`, and `embedding` and `caption` of who gives them, or why one `failed`: whatever a model raises is
    about this clip."""
    found: dict[str, Any] = {"measures": {}, "failed": ""}
    places = {name: _even_places(clip.num_frames, model.num_frames) for name, model in models.items()}
    top, left, height, width = clip.crop
    seen = keep_frames(frames, [*chain(*places.values())], lambda frame: frame[top : top + height, left : left + width])
    for name, model in models.items():
        try:
            value = functions[name](np.stack([seen[place] for place in places[name]]))
            if name == "embedder":
                found["embedding"] = np.asarray(value, np.float16).ravel().tobytes()
            elif name == "captioner":
                found["caption"] = str(value).strip()
            else:
                found["measures"][name.removeprefix("score ")] = float(value)
        except Exception as error:
            return {"failed": f"{model.function}: {type(error).__name__}: {error}"}
    return found


def _even_places(num_frames: int, count: int) -> list[int]:
    """From the first frame to the last; a clip with fewer than `count` shows some twice."""
    return np.linspace(0, num_frames - 1, count).round().astype(int).tolist()


@cache
def load_function(name: str) -> Callable[[UInt8[np.ndarray, "T Y X 3"]], Any]:
    """`package.module:name`, imported. Raises `UserError` if it is not there."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the model {name} cannot be imported ({error}): install it where the workers run") from error


def rendered_name(clip: Candidate, stamp: str, short_side: int) -> str:
    return _hash("rendered", *_place(clip, stamp), clip.crop, clip.whole, short_side, REENCODED, CRF)


def render(short_sides: tuple[int, ...], staging: str, work: Work) -> list[tuple[int, str]]:
    """Stages the bytes of each candidate at each size; returns (start, why) of candidates that could not be read."""
    source, clips = work
    store = Storage(staging)
    failed: dict[int, str] = {}
    for side in short_sides:
        names = {clip.start: rendered_name(clip, source.stamp, side) for clip in clips if fits(clip, side)}
        missing = [clip for clip in clips if clip.start in names and not store.exists(names[clip.start])]
        try:
            for clip, frames in _clips_of(store, source, missing, whole_bytes=side == 0):
                store.write(names[clip.start], msgpack.packb(_encoded(clip, frames, side)))
        except UserError as error:
            failed |= {clip.start: str(error) for clip in missing if not store.exists(names[clip.start])}
    return sorted(failed.items())


def fits(clip: Candidate, short_side: int) -> bool:
    """Nothing is enlarged."""
    return min(clip.crop[2:]) >= short_side


def _encoded(clip: Candidate, frames: bytes | Iterator[np.ndarray], short_side: int) -> dict[str, Any]:
    """The video and what its record says of it. A whole file at its own size stays as it is, with its crop."""
    if isinstance(frames, bytes):
        place = {"height": clip.height, "width": clip.width, "crop": clip.crop}
        return {"video": frames, "media_type": clip.media_type, "colour": clip.colour, **place}
    height, width = scaled_size(clip, short_side)
    pixels = map(partial(_cropped_and_scaled, crop=clip.crop, height=height, width=width), frames)
    if clip.num_frames == 1:
        video, media_type = encode_video(pixels, clip.fps, "png"), "image/png"
    else:
        video, media_type = encode_video(pixels, clip.fps, "mp4", crf=CRF), "video/mp4"
    colour = reencoded_colour(clip.colour)
    crop = (0, 0, height, width)
    return {"video": video, "media_type": media_type, "colour": colour, "height": height, "width": width, "crop": crop}


def scaled_size(clip: Candidate, short_side: int) -> tuple[int, int]:
    """(height, width): the short side as asked for, the other in proportion and even; 0 keeps both."""
    height, width = clip.crop[2:]
    if not short_side or short_side == min(height, width):
        return height, width
    scale = short_side / min(height, width)
    return tuple(short_side if side == min(height, width) else 2 * round(side * scale / 2) for side in (height, width))


def _cropped_and_scaled(frame: np.ndarray, crop: Sequence[int], height: int, width: int) -> np.ndarray:
    top, left, full_height, full_width = crop
    if (full_height, full_width) == (height, width):
        return np.ascontiguousarray(frame[top : top + height, left : left + width])
    box = (left, top, left + full_width, top + full_height)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box))


def _clips_of(
    store: Storage, source: Source, clips: Sequence[Candidate], whole_bytes: bool = False
) -> Iterator[tuple[Candidate, Any]]:
    """(candidate, its frames) in order, from one pass over the source; with `whole_bytes` a whole file is its bytes.

    The frames must be taken before the next candidate is. Raises `UserError` where the source cannot be read on.
    """
    clips = sorted(clips, key=lambda clip: clip.start)
    if not clips:
        return
    with fetched(source) as path, TemporaryDirectory() as scratch:
        if clips[0].repaired:
            path = Path(scratch, "repaired.mp4")
            path.write_bytes(store.read(clips[0].repaired))
        if whole_bytes and clips[0].whole:
            yield clips[0], whole_bytes_of(path)
            return
        frames = iterate_clip(path, clips[0].fps, 0, clips[-1].end)
        position = 0
        for clip in clips:
            yield clip, islice(frames, clip.start - position, clip.end - position)
            position = clip.end


def _place(clip: Candidate, stamp: str) -> list[Any]:
    return [clip.source_id, stamp, clip.start, clip.num_frames, clip.fps, EXAMINE_VERSION]


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
