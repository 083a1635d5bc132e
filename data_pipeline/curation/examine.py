"""One source to candidates: is it readable, where are its shots, what is each like. A pure function of a file."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.curation.alignment import track
from data_pipeline.curation.borders import picture_area
from data_pipeline.curation.candidate import Candidate, Examined, Reason, Rejected
from data_pipeline.curation.config import CurationConfig
from data_pipeline.curation.filters import windows
from data_pipeline.curation.lettering import share_of_text
from data_pipeline.curation.observe import Observation, Sample, observe
from data_pipeline.curation.shots import split_shots
from data_pipeline.curation.signature import cropped, perceptual_hashes, signature
from data_pipeline.errors import UserError
from data_pipeline.frames import resample
from data_pipeline.ingest import Clip, Verdict, ingest
from data_pipeline.video_frames import iterate_frames

EXAMINE_VERSION = 3  # part of every staged result's name: raise it when the same source gives other candidates
UNCUT_S = 1e6  # `ingest` is to cut nothing: shots are found here


def examine(path: Path, source_id: str, cfg: CurationConfig, repaired: Path) -> Examined:
    """All shots of the file at `path`, cut into windows, unfiltered. Bad files give a rejection, never an exception.

    What `ingest` had to encode again (the undamaged part of a broken file) is written beside `repaired`. Raises
    `OSError` where that cannot be.
    """
    verdict = ingest(path, UNCUT_S, repaired)
    if verdict.rejected:
        return Examined(source_id, verdict.checksum, rejected=Rejected("probe", Reason.UNREADABLE, verdict.rejected))
    film = verdict.clips[0].video or path
    try:
        return _look(path, film, source_id, verdict, cfg)
    except UserError as error:
        reason = str(error).removeprefix(f"{film} ")
    except MemoryError:
        reason = "what is seen of it does not fit into memory"
    except Exception as error:  # nothing that is in a file may end the curation of all the others
        reason = f"looking at it fails: {type(error).__name__}: {error}"
    return Examined(source_id, verdict.checksum, rejected=Rejected("probe", Reason.UNREADABLE, reason))


def _look(path: Path, film: Path, source_id: str, verdict: Verdict, cfg: CurationConfig) -> Examined:
    """The candidates of a readable source. Raises `UserError` where `film` cannot be read on."""
    clip = verdict.clips[0]
    frames = resample(iterate_frames(film), clip.fps, clip.num_frames, 0.25 / clip.fps)
    seen = observe(frames, clip.fps, cfg.shots)
    shots = split_shots(seen, cfg.shots)
    bits_per_pixel = 8 * path.stat().st_size / (clip.num_frames * clip.height * clip.width)
    candidates = tuple(
        _candidate(source_id, clip, seen, start, end, bits_per_pixel)
        for shot in shots
        for start, end in windows(*shot, clip.fps, cfg.filters)
    )
    return Examined(source_id, verdict.checksum, candidates, max(0, len(shots) - 1), verdict.notes)


def _candidate(source_id: str, clip: Clip, seen: Observation, start: int, end: int, bits: float) -> Candidate:
    """A shot, or a window of one. Its own samples count; a clip shorter than their distance borrows the one before."""
    inside = [sample for sample in seen.samples if start <= sample.frame < end]
    samples = inside or [max((s for s in seen.samples if s.frame < end), key=lambda s: s.frame)]
    crop = picture_area(samples, clip.height, clip.width)
    # Flow that ends in the next shot is none; bars do not move.
    moving = [s for s in samples if s.frame + 2 < end] or samples
    whole_frame = clip.height * clip.width / (crop[2] * crop[3])
    measures = {
        "bits_per_pixel": bits,
        "sharpness": _median(samples, "sharpness"),
        "luma": _median(samples, "luma"),
        "clipped": _median(samples, "clipped"),
        "motion": _median(moving, "motion") * clip.fps * whole_frame,
        "shake": _median(moving, "shake"),
        "text": share_of_text([cropped(sample.text, clip.height, clip.width, crop) for sample in inside]),
    }
    return Candidate(
        source_id=source_id,
        start=start,
        num_frames=end - start,
        fps=clip.fps,
        height=clip.height,
        width=clip.width,
        crop=crop,
        media_type=clip.media_type,
        colour=clip.colour,
        whole=clip.video is None and (start, end) == (0, clip.num_frames),
        repaired=clip.video.name if clip.video else "",
        measures={name: round(value, 6) for name, value in (measures | clip.scores).items()},
        hashes=perceptual_hashes(samples, clip.height, clip.width, crop),
        signature=signature(seen, start, end - start, crop).tobytes(),
        track=track(seen, start, end - start, crop).tobytes(),
        picture=_jpeg(samples[len(samples) // 2]),
    )


def _median(samples: list[Sample], name: str) -> float:
    """0 where no sample has the measure (an image does not move)."""
    values: Any = [value for sample in samples if not np.isnan(value := getattr(sample, name))]
    return float(np.median(values)) if values else 0.0


def _jpeg(sample: Sample) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(sample.picture).save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()
