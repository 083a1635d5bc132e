"""Whether a generator obeys in every mode: of held-out clips of a synthetic world some is shown, the rest made, and
the probes say of the whole what it shows and of the new frames whether they go on as the truth does.

A body of these clips moves at a steady speed, straight or in cycles, so that what it was seen to do says where it must
be: the clip that was hidden is the truth, and no other one is. *Holding*, which repeats the known frame that is nearest
in time, is what a model scores that knows no motion. A loop has a truth only where the clip comes back to its first
frame; of any loop it is asked that it has no seam.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipeline.packing import RowLayout
from sora_jax.diffusion.generation import Request
from sora_jax.evaluation.obedience import judge_video
from sora_jax.evaluation.probes import follow
from sora_jax.evaluation.prompts import Claim, Vocabulary, parse_prompt
from sora_jax.evaluation.scores import share
from sora_jax.evaluation.seams import measure_seams, steps
from sora_jax.generation import modes
from sora_jax.generation.modes import Plan
from sora_jax.models.codec import Codec

NEAR = 1 / 16
"""An object is where it must be within this share of the frame's short side: of 32 pixels 2, a step of the fastest."""
SURROUNDINGS = 1 / 4
"""What an inpainting's mask adds to the object's way, as a share of the short side: an object's own half, and more."""
BEHIND = "behind a grey bar"

Frames = UInt8[np.ndarray, "T Y X 3"]


@dataclass(frozen=True, eq=False)
class Case:
    """One clip in one mode. `truth` is what the result would be in the world; of it `is_new` frames are judged, if what
    is known determines them.

    `plan` and `truth` are None for text to video: where an object starts is the model's choice.
    """

    mode: str
    prompt: str
    fps: float
    size: tuple[int, int]
    num_frames: int
    is_new: Bool[np.ndarray, " T"]
    plan: Plan | None = None
    truth: Frames | None = None
    truth_colour: str = ""
    is_determined: bool = True

    def request(self, seed: int) -> Request:
        canvas = None if self.plan is None else self.plan.canvas
        return Request(self.prompt, *self.size, self.num_frames, self.fps, seed, canvas=canvas)

    def result(self, frames: Frames) -> Frames:
        """The whole clip, from the canvas' frames."""
        return frames if self.plan is None else self.plan.assemble(frames)


@dataclass(frozen=True)
class Verdict:
    """What holds of one result; None where the mode does not ask. `place_px`: how far from the truth in new frames.
    `seam_ratio` (the largest) and `loop_ratio` are of `measure_seams`."""

    colour: bool
    shape: bool
    direction: bool | None
    place: bool | None = None
    place_px: float | None = None
    known_exact: bool | None = None
    seam_ratio: float | None = None
    loop_ratio: float | None = None


def make_cases(
    codec: Codec, layout: RowLayout, clip: Frames, caption: str, fps: float, vocabulary: Vocabulary
) -> list[Case]:
    """A clip of 1 + c n frames in each mode; edits ask for another colour of the vocabulary."""
    make = _Maker(codec, layout, clip, caption, fps)
    c, total = codec.config.temporal_compression, len(clip)
    half = 1 + c * max(1, (total - 1) // c // 2)
    ends = [(clip[0], 0.0), (clip[-1], (total - 1) / fps)]
    cases = [
        dataclasses.replace(make.case("text"), truth=None),
        make.case("animate", modes.animate(codec, layout, ends[:1], total, fps)),
        make.case("key frames", modes.animate(codec, layout, ends, total, fps)),
        make.case("forward", modes.extend_forward(codec, layout, clip[:half], total - half, half)),
        make.case("backward", modes.extend_backward(codec, layout, clip[-c:], total - c, c)),
        make.case("connect", modes.connect(codec, layout, clip[:1], clip[-c:], total - 1 - c, c)),
    ]
    if BEHIND in caption:
        return [dataclasses.replace(case, mode=f"{case.mode}, {BEHIND}") for case in cases]
    return [*cases, make.looped(half), *make.changed(vocabulary)]


@dataclass(frozen=True, eq=False)
class _Maker:
    codec: Codec
    layout: RowLayout
    clip: Frames
    caption: str
    fps: float

    def case(self, mode: str, plan: Plan | None = None, prompt: str | None = None) -> Case:
        is_new = np.ones(len(self.clip), bool)
        for first, end in () if plan is None else plan.known_frames:
            is_new[first:end] = False
        size = self.clip.shape[2], self.clip.shape[1]
        num_frames = len(self.clip) if plan is None else plan.num_frames
        (claim,) = parse_prompt(self.caption)
        return Case(mode, prompt or self.caption, self.fps, size, num_frames, is_new, plan, self.clip, claim.colour)

    def looped(self, half: int) -> Case:
        """The clip's first half, and the rest of its period. A body that moves straight never comes back: there the
        way back is as long as the rest of the clip, and the model has to make up that it turns."""
        c = self.codec.config.temporal_compression
        period = period_of(self.clip, range(half + c, len(self.clip), c))
        end = period or len(self.clip)
        context = 1 + c if period else 1  # what both ends show must fit in the window that the model was trained on
        plan = modes.loop(self.codec, self.layout, self.clip[:half], end - half, context)
        truth, is_new = self.clip[:end], np.arange(end) >= half
        return dataclasses.replace(
            self.case("loop", plan), truth=truth, is_new=is_new, is_determined=period is not None
        )

    def changed(self, vocabulary: Vocabulary) -> list[Case]:
        """Other colours: of the whole picture from half-way to noise, and of the object's surroundings alone."""
        (claim,) = parse_prompt(self.caption)
        others = [colour for colour in vocabulary.colours if colour != claim.colour]
        if not others:
            return []  # a world of one colour
        colour = others[sum(map(ord, self.caption)) % len(others)]
        prompt = self.caption.replace(claim.colour, colour)
        masked = self._around(claim, vocabulary)
        return [
            self.case("edit", modes.edit(self.codec, self.layout, self.clip, 0.9), prompt),
            self.case("inpaint", modes.edit(self.codec, self.layout, self.clip, 1.0, masked), prompt),
        ]

    def _around(self, claim: Claim, vocabulary: Vocabulary) -> Bool[np.ndarray, "T Y X"]:
        """The box that the object moves in, and its surroundings."""
        track = follow(self.clip, claim.colour, vocabulary)
        margin = SURROUNDINGS * min(self.clip.shape[1:3])
        low, high = np.nanmin(track, axis=0) - margin, np.nanmax(track, axis=0) + margin
        y, x = np.mgrid[: self.clip.shape[1], : self.clip.shape[2]] + 0.5
        box = (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])
        return np.broadcast_to(box, self.clip.shape[:3])


def period_of(clip: Frames, candidates: Sequence[int]) -> int | None:
    """The first of `candidates` at which the clip shows its frame 0 again: nearer than half of its usual step."""
    usual = float(np.median(steps(clip)))
    again = (n for n in candidates if steps(np.stack([clip[0], clip[n]]))[0] < usual / 2)
    return next(again, None)


def judge_case(case: Case, result: Frames, vocabulary: Vocabulary) -> Verdict:
    """What the probes say of a result."""
    (claim,) = parse_prompt(case.prompt)
    verdict = judge_video(case.prompt, result, vocabulary).verdicts[0]
    asks_place = case.truth is not None and case.is_determined
    distance = _distance(case, result, claim, vocabulary) if asks_place else None
    near = NEAR * min(case.size)
    seams = measure_seams(result, case.plan.seams) if case.plan is not None and case.plan.seams else None
    return Verdict(
        verdict["colour"],
        verdict["shape"],
        verdict.get("direction"),
        None if distance is None else bool(distance <= near),
        distance,
        None if case.plan is None else _is_exact(case, result),
        None if seams is None else max(seams.ratios),
        seams.loop_ratio if seams is not None and case.plan is not None and case.plan.loops else None,
    )


def held(case: Case) -> Frames | None:
    """What a model makes that knows no motion: the truth's known frames, each new one a copy of the nearest of them."""
    if case.truth is None or case.is_new.all():
        return None
    known = np.flatnonzero(~case.is_new)
    nearest = known[np.abs(np.arange(len(case.truth))[:, None] - known[None]).argmin(axis=1)]
    return case.truth[nearest]


def _distance(case: Case, result: Frames, claim: Claim, vocabulary: Vocabulary) -> float:
    """Median distance in pixels to where the truth's object is, over the new frames that show it; in a frame without
    the object it is the frame's short side. Not the mean: the last sliver that shows beside a bar has no place."""
    assert case.truth is not None
    truth, found = follow(case.truth, case.truth_colour, vocabulary), follow(result, claim.colour, vocabulary)
    distance = np.linalg.norm(truth - found, axis=-1)
    asked = case.is_new & ~np.isnan(truth[:, 0])
    return float(np.median(np.nan_to_num(distance, nan=min(case.size))[asked]))


def _is_exact(case: Case, result: Frames) -> bool:
    """Whether the known pixels of the result are the truth's."""
    assert case.truth is not None and case.plan is not None
    kept = np.zeros(case.truth.shape[:3], bool)
    kept[~case.is_new] = True
    for known in case.plan.known:
        if known.kept is not None:
            kept |= known.kept
    return bool(np.array_equal(result[kept], case.truth[kept]))


def tally(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Shares with intervals of what holds, and the medians of what is measured."""
    names = ("colour", "shape", "direction", "place", "known_exact")
    values = {name: [v for verdict in verdicts if (v := getattr(verdict, name)) is not None] for name in names}
    shares = {name: share(found).as_dict() for name, found in values.items() if found}
    for name in ("place_px", "seam_ratio", "loop_ratio"):
        found = [value for verdict in verdicts if (value := getattr(verdict, name)) is not None]
        shares |= {name: float(np.median(found))} if found else {}
    return shares
