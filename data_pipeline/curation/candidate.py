"""What travels through the stages: a candidate clip, and the typed reason for which one is dropped."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Float32


class Reason(StrEnum):
    """Why a source or a clip is not in the data set, in the order of the stages."""

    UNREADABLE = "unreadable"
    CRASHED = "crashed the decoder"
    TOO_SHORT = "too short"
    TOO_SMALL = "too small"
    ASPECT = "extreme aspect"
    FRAME_RATE = "low frame rate"
    BITS = "few bits per pixel"
    BLURRED = "blurred"
    EXPOSURE = "badly exposed"
    STATIC = "static"
    FAST = "moves too fast"
    SHAKING = "shaking"
    TEXT = "text over the picture"
    MODEL_FAILED = "a model failed"
    SCORE = "a model's score"
    DUPLICATE = "near duplicate"
    BALANCE = "over its cluster's quota"
    NO_CAPTION = "no caption"


@dataclass(frozen=True)
class Rejected:
    """`stage` is the one that dropped it; `detail` has the number and the limit."""

    stage: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Candidate:
    """Frames `[start, start + num_frames)` of a source at its constant rate, and what was measured of them.

    `crop` is (top, left, height, width) of the picture within the source's frame. `hashes` are 64-bit perceptual
    hashes of sampled pictures; `signature` is a float16 vector of unit length (`signature.py`); `track` holds its small
    pictures in time (`alignment.py`); `embedding` is what an embedder gave, `caption` what a captioner did; `copies`
    are the sources of the duplicates that it stands for; `picture` is a small JPEG for people.
    `repaired`: the source was damaged, and `start` counts in its repaired file.
    """

    source_id: str
    start: int
    num_frames: int
    fps: float
    height: int
    width: int
    crop: tuple[int, int, int, int]
    media_type: str
    colour: dict[str, str]
    whole: bool
    repaired: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    hashes: tuple[int, ...] = ()
    signature: bytes = b""
    track: bytes = b""
    embedding: bytes = b""
    caption: str = ""
    copies: tuple[str, ...] = ()
    picture: bytes = b""
    rejected: Rejected | None = None

    @property
    def clip_id(self) -> str:
        return self.source_id if self.whole else f"{self.source_id}#{self.start:06d}"

    @property
    def end(self) -> int:
        """The frame behind the last one."""
        return self.start + self.num_frames

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.fps

    def vector(self) -> Float32[np.ndarray, " E"]:
        """What similarity is measured by: the embedder's vector where there is one."""
        return np.frombuffer(self.embedding or self.signature, np.float16).astype(np.float32)


@dataclass(frozen=True)
class Examined:
    """What one source became. A source that is `rejected` has no candidates."""

    source_id: str
    checksum: str
    candidates: tuple[Candidate, ...] = ()
    num_cuts: int = 0
    notes: tuple[str, ...] = ()
    rejected: Rejected | None = None


def to_plain(examined: Examined) -> dict[str, Any]:
    """For msgpack."""
    return asdict(examined)


def from_plain(plain: dict[str, Any]) -> Examined:
    candidates = tuple(candidate_from_plain(candidate) for candidate in plain["candidates"])
    return Examined(
        **{**plain, "candidates": candidates, "notes": tuple(plain["notes"]), "rejected": _rejected(plain["rejected"])}
    )


def candidate_from_plain(plain: dict[str, Any]) -> Candidate:
    shaped = {"crop": tuple(plain["crop"]), "hashes": tuple(plain["hashes"]), "rejected": _rejected(plain["rejected"])}
    return Candidate(**{**plain, **shaped, "copies": ()})  # which ones these are, is found in every run anew


def _rejected(plain: dict[str, Any] | None) -> Rejected | None:
    return None if plain is None else Rejected(plain["stage"], Reason(plain["reason"]), plain["detail"])
