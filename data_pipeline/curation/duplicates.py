"""Near duplicates: pairs by perceptual hashes and signatures, clusters of pairs, the best of each cluster.

Hashes are cut into four bands of 16 bits; clips that share a band of some hash are compared (multi-index hashing,
Norouzi et al. 2012: no pair within three bits is missed; of farther ones some, but a clip has several hashes). Pairs
are joined into clusters as in SemDeDup (Abbas et al. 2023), whose embeddings may take the place of our signatures.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int64

from data_pipeline.curation.alignment import TRACK_RATE, aligned_similarities, normalised
from data_pipeline.curation.candidate import Candidate, Reason, Rejected
from data_pipeline.curation.config import DuplicateConfig

BANDS, BAND_BITS = 4, 16
MAX_NEIGHBOURS = 256  # in a crowded band a clip is compared with as many, next in order of their whole hashes
BLOCK = 4096
BATCH = 64  # clips that one is compared with at once: 15 MB for clips of 20 s

Progress = Callable[[int, int], None]


def drop_duplicates(
    clips: Sequence[Candidate], cfg: DuplicateConfig, on_progress: Progress = lambda done, total: None
) -> list[Candidate]:
    """The clips in their order, all but the best of each cluster rejected with the one that stays in their place, which
    names the sources of the others. Calls `on_progress(pairs compared, pairs)`."""
    clips = list(clips)
    members = defaultdict(list)
    for number, root in enumerate(duplicate_clusters(clips, cfg, on_progress)):
        members[root].append(number)
    for cluster in members.values():
        best = min(cluster, key=lambda n: (_worth(clips[n]), clips[n].clip_id))
        copies = [number for number in cluster if number != best]
        why = Rejected("duplicates", Reason.DUPLICATE, f"of {clips[best].clip_id}")
        for number in copies:
            clips[number] = dataclasses.replace(clips[number], rejected=why)
        names = tuple(dict.fromkeys(clips[number].source_id for number in copies))
        clips[best] = dataclasses.replace(clips[best], copies=names)
    return clips


def _worth(clip: Candidate) -> tuple[float, ...]:
    """Smallest for the best: more pixels, then longer, then untouched, then sharper."""
    return (-clip.crop[2] * clip.crop[3], -round(clip.duration_s, 1), not clip.whole, -clip.measures["sharpness"])


def duplicate_clusters(
    clips: Sequence[Candidate], cfg: DuplicateConfig, on_progress: Progress = lambda done, total: None
) -> list[int]:
    """For each clip the number of the first clip in its cluster (single linkage)."""
    roots = list(range(len(clips)))

    def root(number: int) -> int:
        while roots[number] != number:
            roots[number] = roots[roots[number]]
            number = roots[number]
        return number

    def join(a: int, b: int) -> None:
        first, second = sorted((root(a), root(b)))
        roots[second] = first

    if len(clips) > 1:
        pairs = _proposed_pairs(clips, cfg.max_bits)
        same = _similar(pairs, clips, cfg.min_similarity)
        for a, b in pairs[same].tolist():
            join(a, b)
        # An embedder's vectors have the last word; without one, parts of clips are looked at too.
        left = pairs[~same] if not any(clip.embedding for clip in clips) else pairs[:0]
        settled = len(pairs) - len(left)
        on_progress(settled, len(pairs))
        for done, a, others in _batches(left):
            apart = [b for b in others if root(a) != root(b)]
            for b in _overlapping(clips, a, apart, cfg):
                join(a, b)
            on_progress(settled + done, len(pairs))
    return [root(number) for number in range(len(clips))]


def _batches(pairs: Int64[np.ndarray, "p 2"]) -> Iterator[tuple[int, int, list[int]]]:
    """(pairs up to here, a clip, some that it is a pair with), from pairs in their order."""
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(pairs)]):
        for first in range(start, end, BATCH):
            last = min(first + BATCH, end)
            yield last, int(pairs[start, 0]), pairs[first:last, 1].tolist()


def _proposed_pairs(clips: Sequence[Candidate], max_bits: int) -> Int64[np.ndarray, "p 2"]:
    """Unique pairs (a < b) of clips of which some hashes share a band and differ in at most `max_bits`."""
    owners = np.repeat(np.arange(len(clips)), [len(clip.hashes) for clip in clips])
    hashes = np.array([value for clip in clips for value in clip.hashes], np.uint64)
    found = [np.zeros((0, 2), np.int64)]
    for band in range(BANDS):
        keys = (hashes >> np.uint64(BAND_BITS * band)) & np.uint64((1 << BAND_BITS) - 1)
        order = np.lexsort((hashes, keys))
        keys, owner, value = keys[order], owners[order], hashes[order]
        for step in range(1, min(MAX_NEIGHBOURS, len(keys))):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(same):
                break
            near = same[np.bitwise_count(value[same] ^ value[same + step]) <= max_bits]
            pairs = np.sort(np.stack([owner[near], owner[near + step]], axis=1), axis=1)
            found.append(np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0))
    return np.unique(np.concatenate(found), axis=0)


def _similar(pairs: Int64[np.ndarray, "p 2"], clips: Sequence[Candidate], least: float) -> Bool[np.ndarray, " p"]:
    """Which pairs agree as wholes."""
    vectors = np.stack([clip.vector() for clip in clips])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    same = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        same[start : start + BLOCK] = (vectors[block[:, 0]] * vectors[block[:, 1]]).sum(axis=1) >= least
    return same


def _overlapping(clips: Sequence[Candidate], one: int, others: Sequence[int], cfg: DuplicateConfig) -> list[int]:
    """Those of `others` of which a part is a copy of a part of `one`."""
    moving = [number for number in others if _is_moving(clips[number])]
    if not moving or not _is_moving(clips[one]):
        return []
    tracks = [normalised(clips[number].track) for number in moving]
    least = round(cfg.min_overlap_s * TRACK_RATE)
    found = aligned_similarities(normalised(clips[one].track), tracks, cfg.min_overlap, least)
    return [number for number, alike in zip(moving, found, strict=True) if alike >= cfg.min_similarity]


def _is_moving(clip: Candidate) -> bool:
    return clip.num_frames > 1 and bool(clip.track)
