"""Which of a clip's captions a generator or a captioner is trained with: any evenly, or mixed by who wrote them.

    weights {"captioner": 0.95, "human": 0.05} ─► draw a name among those that the clip has ─► any caption of that name

A name of the weights means the source of just that name and every source that begins with it and a space: "captioner"
is also "captioner 1a2b". Of several names that mean one source the longest counts. A clip that lacks a name leaves its
share to the names that it has; a source of weight 0 or without a name is used only for clips that have no other.
DALL·E 3 (Betker et al. 2023, section 3.3) found 95% of synthetic captions best.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int64

from data_pipeline.errors import UserError
from data_pipeline.permutation import key_from, uniform
from data_pipeline.shards import Index

MAX_LISTED = 20


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises UserError for weights that say nothing."""
    values = list(weights.values())
    if any(not 0 <= value < math.inf for value in values) or (values and not sum(values) > 0):
        raise UserError(f"caption_weights are {dict(weights)}, but must be 0 or more, and one above 0")


def check_names(weights: Mapping[str, float], indices: Sequence[Index]) -> None:
    """Raises UserError for a name that means no source of any of these data sets."""
    sources = [source for index in indices for source in index.caption_sources]
    unknown = [name for name in weights if not any(is_meant(name, source) for source in sources)]
    if unknown and all(index.caption_source is None for index in indices):
        raise UserError(
            f"caption_weights name {unknown[0]!r}, but index.npz does not say who wrote the captions: the data set was "
            "built before that was kept; build it again (`sora-jax encode` for latents), or leave the weights out"
        )
    if unknown:
        counts: dict[str, int] = {}
        for index in indices:
            for source, count in count_sources(index).items():
                counts[source] = counts.get(source, 0) + count
        most = sorted(counts.items(), key=lambda item: -item[1])[:MAX_LISTED]
        found = ", ".join(f"{source!r} ({count} captions)" for source, count in most) or "none at all"
        raise UserError(
            f"caption_weights name {unknown[0]!r}, but no caption is of that source; the sources found are: {found}"
        )


def is_meant(name: str, source: str) -> bool:
    """Whether a name of the weights means a caption's source."""
    return source == name or source.startswith(f"{name} ")


def name_of(names: Iterable[str], source: str) -> str | None:
    """Which of the names means a caption's source: the longest that does."""
    return max((name for name in names if is_meant(name, source)), key=len, default=None)


def count_sources(index: Index, split: str | None = None) -> dict[str, int]:
    """Captions of each source, most first; of an index that does not know them: none."""
    if index.caption_source is None:
        return {}
    source = index.caption_source
    if split is not None:
        clip = np.repeat(np.arange(len(index)), np.diff(index.caption_offsets))
        source = source[np.isin(clip, index.select(split))]
    counts = np.bincount(source, minlength=len(index.caption_sources))
    order = np.argsort(-counts, kind="stable")
    return {index.caption_sources[i]: int(counts[i]) for i in order if counts[i]}


def shares_by_source(index: Index, record: np.ndarray, caption: np.ndarray) -> dict[str, float]:
    """Of drawn captions (-1: none), the share of each source; of an index that does not know them: none."""
    if index.caption_source is None or not len(record):
        return {}
    drawn = (index.caption_offsets[record] + caption)[caption >= 0]
    counts = np.bincount(index.caption_source[drawn], minlength=len(index.caption_sources)) / len(record)
    shares = {index.caption_sources[i]: float(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}
    return shares | ({"no caption": float((caption < 0).mean())} if (caption < 0).any() else {})


class CaptionDraw:
    """Draws captions of an index; without weights evenly among a clip's."""

    def __init__(self, index: Index, weights: Mapping[str, float], key: int):
        """`key`: of the plan; equal keys draw equally. Raises UserError for weights with an index without sources."""
        check_weights(weights)
        self._index, self._key = index, key
        used = {name: weight for name, weight in weights.items() if weight > 0}
        self._weights = np.asarray(list(used.values()))
        self._names = _names_of_captions(index, weights, list(used)) if used else np.zeros(0, np.int64)

    def draw(
        self, epoch: Int64[np.ndarray, " n"], record: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """For each record (in its epoch): the number of its caption, -1 where it has none, and the caption's tokens."""
        first, last = self._index.caption_offsets[record], self._index.caption_offsets[record + 1]
        place = uniform(key_from(self._key, "caption"), epoch, record)
        if not len(self._weights):
            caption = np.floor(place * (last - first)).astype(np.int64)
        else:
            caption = self._weighted(first, last - first, place, epoch, record)
        caption[first == last] = -1
        text = np.ones(len(record), np.int64)
        text[caption >= 0] = self._index.caption_tokens[(first + caption)[caption >= 0]]
        return caption, text

    def lacks_names(self, record: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of these records have captions, but none that the weights name with more than 0."""
        if not len(self._weights):
            return np.zeros(len(record), bool)
        first = self._index.caption_offsets[record]
        counts, _, _ = self._counts(first, self._index.caption_offsets[record + 1] - first)
        return (counts[:, :-1].sum(axis=1) == 0) & (counts[:, -1] > 0)

    def _weighted(
        self, first: np.ndarray, count: np.ndarray, place: np.ndarray, epoch: np.ndarray, record: np.ndarray
    ) -> np.ndarray:
        """[n]: first the name, by the weights of those that the clip has, then evenly a caption of that name."""
        counts, clip, name = self._counts(first, count)
        share = np.cumsum(self._weights * (counts[:, :-1] > 0), axis=1)
        drawn = uniform(key_from(self._key, "caption source"), epoch, record) * share[:, -1]
        chosen = (share <= drawn[:, None]).sum(axis=1)  # a name without weight here ends where the one before ends
        chosen[share[:, -1] == 0] = len(self._weights)
        wanted = np.floor(place * counts[np.arange(len(counts)), chosen]).astype(np.int64)
        is_chosen = name == chosen[clip]
        rank = np.cumsum(is_chosen) - 1
        before = np.cumsum(np.bincount(clip[is_chosen], minlength=len(first)))
        is_drawn = is_chosen & (rank == (wanted + np.concatenate([[0], before[:-1]]))[clip])
        caption = np.full(len(first), -1, np.int64)
        caption[clip[is_drawn]] = (np.arange(len(clip)) - (np.cumsum(count) - count)[clip])[is_drawn]
        return caption

    def _counts(self, first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Captions of each clip by name `[n, names + 1]` (the last: of no name), and of each of all these captions in
        turn its clip (0 to n-1) and its name."""
        clip = np.repeat(np.arange(len(first)), count)
        caption = np.arange(len(clip)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
        name = self._names[caption]
        names = len(self._weights) + 1
        counts = np.bincount(clip * names + name, minlength=len(first) * names).reshape(len(first), names)
        return counts, clip, name


def _names_of_captions(index: Index, weights: Mapping[str, float], used: Sequence[str]) -> np.ndarray:
    """[captions]: which of the `used` names means a caption's source; their number for none of them."""
    if index.caption_source is None:
        raise UserError(
            f"caption_weights are {dict(weights)}, but index.npz does not say who wrote the captions: the data set was "
            "built before that was kept. Build it again (`sora-jax encode` for latents), or leave caption_weights empty"
        )
    name_of_source = np.full(max(1, len(index.caption_sources)), len(used), np.min_scalar_type(len(used)))
    for number, source in enumerate(index.caption_sources):
        if (meant := name_of(weights, source)) in used:
            name_of_source[number] = used.index(meant)
    return name_of_source[index.caption_source]
