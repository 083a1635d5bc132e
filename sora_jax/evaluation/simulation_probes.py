"""Whether a video of the world `simulation` keeps what must stay true: a verdict from its pixels and its prompt alone.

Objects are found by hue, as in `probes`. A verdict is yes or no; its rate is read beside that of real clips (what the
probe itself misses) and that of forgetful ones, whose second half is another clip of the same kind: what a generator
would get that makes perfect frames and forgets all at the middle.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import label

from data_pipeline.synthetic.palette import COLOURS
from data_pipeline.synthetic.simulation import INKS, NUMBERS
from sora_jax.evaluation.probes import covers_of, track_of
from sora_jax.evaluation.scores import Share, share

Video = UInt8[np.ndarray, "T Y X 3"]
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)})\b")
SEEN, HIDDEN, WHOLE = 0.4, 0.3, 0.85
"""Shares of an object's area: below HIDDEN it is not there, above WHOLE nothing covers it."""
MOVES_PX = 0.4
"""A frame: slower is still."""
ORBIT_FRAMES = 5
REPROJECTION_PX, PARALLAX_PX = 0.5, 0.5


@dataclass(frozen=True)
class Seen:
    """What of each ink is seen: `cover` the share of each pixel, `area` its sum a frame, `track` its centroid."""

    cover: dict[str, Float[np.ndarray, "T Y X"]]

    def area(self, colour: str) -> Float[np.ndarray, " T"]:
        return self.cover[colour].sum((1, 2))

    def full(self, colour: str) -> float:
        return float(np.quantile(self.area(colour), 0.9))

    def track(self, colour: str) -> Float[np.ndarray, "T 2"]:
        """(x, y); NaN where less than SEEN is seen."""
        area = self.area(colour)
        return track_of(self.cover[colour], area, area >= max(SEEN * self.full(colour), 1))

    def others(self, colours: Sequence[str]) -> float:
        """The largest area of any other ink in any frame."""
        return max((float(self.area(c).max()) for c in self.cover if c not in colours), default=0.0)


def judge(prompt: str, frames: Video) -> tuple[str, bool] | None:
    """(kind, verdict) of a video; None where the prompt is of no kind."""
    kind = prompt.partition(":")[0]
    if kind not in KINDS:
        return None
    colours = tuple(dict.fromkeys(word for word in _COLOUR.findall(prompt) if word in INKS))
    return kind, bool(KINDS[kind](Seen(covers_of(frames, INKS)), colours, prompt))


def permanence(seen: Seen, colours: Sequence[str], prompt: str) -> bool:
    """What goes behind the bar comes out: its colour, where its motion has brought it meanwhile, and nothing else."""
    (colour,) = colours
    area, full, track = seen.area(colour), seen.full(colour), seen.track(colour)
    hidden = np.flatnonzero(area < HIDDEN * full)
    if full < 4 or not len(hidden) or seen.others(colours) > HIDDEN * full:
        return False
    whole = area >= WHOLE * full
    before, after = (np.flatnonzero(whole & side) for side in _sides(len(area), hidden))
    if len(before) < 2 or not len(after):
        return False
    expected = np.stack([np.polyval(np.polyfit(before, track[before, k], 1), after) for k in (0, 1)], -1)
    return bool(np.abs(expected - track[after]).max() <= 0.35 * np.sqrt(full))


def _sides(num: int, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    times = np.arange(num)
    return times < hidden[0], times > hidden[-1]


def orbit(seen: Seen, colours: Sequence[str], prompt: str) -> bool:
    """Six points of one rigid body under an orthographic camera: their tracks, less their means, have rank three
    (Tomasi & Kanade 1992). What is left is the reprojection error; a third value near zero would be a flat picture."""
    whole = np.stack([seen.area(c) >= WHOLE * max(seen.full(c), 1) for c in INKS], -1).all(-1)
    if whole.sum() < ORBIT_FRAMES:
        return False
    tracks = np.stack([seen.track(c)[whole] for c in INKS], 1)
    rows = (tracks - tracks.mean(1, keepdims=True)).transpose(0, 2, 1).reshape(-1, len(INKS))
    values = np.linalg.svd(rows, compute_uv=False) / np.sqrt(rows.size)
    return bool(np.hypot(*values[3:5]) <= REPROJECTION_PX and values[2] >= PARALLAX_PX)


def bounce(seen: Seen, colours: Sequence[str], prompt: str) -> bool:
    """There and back on one line at one speed, and the turn is at the edge of the picture."""
    (colour,) = colours
    track, size = seen.track(colour), np.sqrt(4 / np.pi * seen.full(colour))
    if np.isnan(track).any() or size < 2:
        return False
    x, width = track[:, 0], seen.cover[colour].shape[2]
    turn = int(np.abs(x - x[0]).argmax())
    if not 2 < turn < len(x) - 3:
        return False
    before, after = (np.polyfit(t, x[t], 1) for t in (np.arange(turn), np.arange(turn + 1, len(x))))
    bent = max(float(np.abs(np.polyval(line, t) - x[t]).max()) for line, t in _pieces(before, after, turn, len(x)))
    to_edge = min(x[turn], width - x[turn]) - size / 2
    return bool(
        abs(before[0]) >= MOVES_PX
        and abs(before[0] + after[0]) <= 0.2 * abs(before[0])
        and to_edge <= 0.6 * abs(before[0]) + 1
        and bent <= 1
        and np.ptp(track[:, 1]) <= 2
    )


def _pieces(before: np.ndarray, after: np.ndarray, turn: int, num: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(before, np.arange(turn)), (after, np.arange(turn + 1, num))]


def collision(seen: Seen, colours: Sequence[str], prompt: str) -> bool:
    """Two equal bodies approach and part, never through each other, and the sum of their speeds stays."""
    tracks = [seen.track(colour)[:, 0] for colour in colours]
    if len(tracks) != 2 or np.isnan(tracks).any():
        return False
    size = np.sqrt(4 / np.pi * max(seen.full(colour) for colour in colours))
    apart = tracks[1] - tracks[0]
    before, after = (np.array([np.diff(x[part]).mean() for x in tracks]) for part in (slice(3), slice(-3, None)))
    closing, parting = (abs(v[1] - v[0]) * np.sign((v[1] - v[0]) * apart[0]) for v in (before, after))
    return bool(
        np.all(apart * apart[0] > 0)
        and np.abs(apart).min() >= 0.75 * size
        and closing <= -MOVES_PX
        and parting >= 0.7 * -closing
        and abs(after.sum() - before.sum()) <= 0.25 * np.abs(before).sum()
        and np.abs(after - before[::-1]).max() <= 0.35 * np.abs(before).sum()
    )


def count(seen: Seen, colours: Sequence[str], prompt: str) -> bool:
    """As many as the prompt says go in and come out, and none is seen between."""
    (colour,) = colours
    claimed = next((number for number, word in enumerate(NUMBERS) if word in prompt.split()), 0)
    area, full = seen.area(colour), seen.full(colour)
    hidden = area.min() < HIDDEN * full
    numbers = [_pieces_of(seen.cover[colour][t], full / max(claimed, 1)) for t in (0, 1, -2, -1)]
    return bool(hidden and numbers == [claimed] * 4 and seen.others(colours) <= HIDDEN * full / max(claimed, 1))


def _pieces_of(cover: Float[np.ndarray, "Y X"], area: float) -> int:
    """Connected pieces that have half of the area of one, at least."""
    found, num = label(cover >= 0.5)
    return int(sum(cover[found == k].sum() >= 0.5 * area for k in range(1, num + 1)))


def paint(seen: Seen, colours: Sequence[str], prompt: str) -> bool:
    """What was painted at the middle, where the brush is no more, is there at the end; and more has come."""
    (colour,) = colours
    masks = seen.cover[colour] >= 0.5
    middle, gap = len(masks) // 2, -(-3 * len(masks) // 17)
    painted = masks[middle] & masks[middle - gap]
    if painted.sum() < 8:
        return False
    kept = (painted & masks[-1]).sum() / painted.sum()
    return bool(kept >= 0.9 and masks[-1].sum() >= 1.3 * painted.sum() and seen.others(colours) <= 4)


def comes_back(seen: Seen, colours: Sequence[str], prompt: str) -> bool:
    """Out of sight at the middle; at the end the same picture as at the beginning."""
    full = [max(float(seen.area(c)[0]), 4.0) for c in colours]
    middle = len(seen.area(colours[0])) // 2
    gone = all(seen.area(c)[middle] < HIDDEN * area for c, area in zip(colours, full, strict=True))
    same = [_overlap(seen.cover[c][0], seen.cover[c][-1]) >= 0.7 for c in colours]
    return bool(gone and all(same) and seen.others(colours) <= HIDDEN * max(full))


def _overlap(a: Float[np.ndarray, "Y X"], b: Float[np.ndarray, "Y X"]) -> float:
    """Intersection over union of two covers."""
    union = float(np.maximum(a, b).sum())
    return float(np.minimum(a, b).sum()) / union if union > 4 else 0.0


KINDS: dict[str, Callable[[Seen, Sequence[str], str], bool]] = {
    "permanence": permanence,
    "orbit": orbit,
    "bounce": bounce,
    "collision": collision,
    "count": count,
    "paint": paint,
    "return": comes_back,
}


def forgetful(clips: Sequence[tuple[str, Video]]) -> list[tuple[str, Video]]:
    """Each clip with the second half of the next one of its kind and shape; those without such a one are left out."""
    groups: dict[tuple, list[tuple[str, Video]]] = {}
    for prompt, frames in clips:
        groups.setdefault((prompt.partition(":")[0], frames.shape), []).append((prompt, frames))
    found = []
    for group in groups.values():
        for (prompt, frames), (_, other) in zip(group, group[1:] + group[:1], strict=True):
            middle = (len(frames) + 1) // 2
            if frames is not other:
                found.append((prompt, np.concatenate([frames[:middle], other[middle:]])))
    return found


def rates(clips: Sequence[tuple[str, Video]]) -> dict[str, Share]:
    """The share of each kind's videos that keep what they must."""
    verdicts: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for prompt, frames in clips:
        found = judge(prompt, frames)
        if found is not None:
            verdicts[found[0]].append(found[1])
    return {kind: share(outcomes) for kind, outcomes in verdicts.items() if outcomes}
