"""What a caption of the synthetic worlds claims about each object, read back from its words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_pipeline.synthetic.palette import COLOURS, SHAPES

ATTRIBUTES = ("colour", "shape", "direction")
STILL = "still"

_OBJECT = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", re.IGNORECASE)
# "up and to the left" is a diagonal: the probes decide between the four straight directions only.
_HEADING = re.compile(r"\bmov(?:es|ing) (?:to the )?(left|right|up|down)(?:wards)?\b(?! and to the)", re.IGNORECASE)
_STILL = re.compile(r"\bstays still\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_CAMERA = re.compile(r"^the camera\b", re.IGNORECASE)


@dataclass(frozen=True)
class Claim:
    """What is said of one object; `None` where nothing is said. `direction` is how its motion begins."""

    colour: str
    shape: str
    direction: str | None = None

    def items(self) -> dict[str, str]:
        """The attributes that are claimed."""
        return {name: value for name in ATTRIBUTES if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Vocabulary:
    """The values that a probe decides between: those of the world, so that chance is one over their number."""

    colours: tuple[str, ...] = tuple(COLOURS)
    shapes: tuple[str, ...] = SHAPES
    directions: tuple[str, ...] = field(default=("left", "right", "up", "down", STILL))


def parse_prompt(text: str) -> tuple[Claim, ...]:
    """The claims of a prompt, an object each in the order of the words; empty if none is recognised.

    A word about the camera is not one about an object.
    """
    text = " ".join(sentence for sentence in _SENTENCE.split(text) if not _CAMERA.match(sentence))
    found = list(_OBJECT.finditer(text))
    starts = [match.start() for match in found] + [len(text)]
    return tuple(
        Claim(match[1].lower(), match[2].lower(), _direction(text[match.end() : end]))
        for match, end in zip(found, starts[1:], strict=True)
    )


def vocabulary_of(claims: Iterable[Claim]) -> Vocabulary:
    """The values that occur, in the palette's order. Without claims, everything that the palette knows."""
    claims = list(claims)
    if not claims:
        return Vocabulary()
    seen = {name: {getattr(claim, name) for claim in claims} for name in ATTRIBUTES}
    everything = Vocabulary()
    return Vocabulary(
        tuple(name for name in everything.colours if name in seen["colour"]),
        tuple(name for name in everything.shapes if name in seen["shape"]),
        tuple(name for name in everything.directions if name in seen["direction"]),
    )


def _direction(words: str) -> str | None:
    heading = _HEADING.search(words)
    if heading:
        return heading[1].lower()
    return STILL if _STILL.search(words) else None
