"""Balance: clusters of similar clips, and a quota for each, so that a thousand clips of one table do not drown others.

Spherical k-means on the clips' vectors with farthest-point starts; what is over a quota is dropped in an order given by
a hash of the clip's name: an unbiased draw that other clips do not change.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from data_pipeline.curation.candidate import Candidate, Reason, Rejected
from data_pipeline.curation.config import BalanceConfig

ITERATIONS = 20


def balance(clips: Sequence[Candidate], cfg: BalanceConfig) -> list[Candidate]:
    """The clips in their order, those over their cluster's quota rejected."""
    clips = list(clips)
    if not cfg.num_clusters or len(clips) <= cfg.num_clusters:
        return clips
    cluster = k_means(np.stack([clip.vector() for clip in clips]), cfg.num_clusters)
    quota = max(1, math.floor(cfg.quota * len(clips) / cfg.num_clusters))
    for number in range(cfg.num_clusters):
        members = sorted(
            np.flatnonzero(cluster == number), key=lambda n: hashlib.sha256(clips[n].clip_id.encode()).digest()
        )
        for surplus in members[quota:]:
            why = Rejected("balance", Reason.BALANCE, f"its cluster holds {len(members)} clips, the quota is {quota}")
            clips[surplus] = dataclasses.replace(clips[surplus], rejected=why)
    return clips


def k_means(vectors: Float32[np.ndarray, "n E"], num_clusters: int) -> Int64[np.ndarray, " n"]:
    """The cluster of each vector. Deterministic: it starts at the first vector, and goes on with the farthest ones."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    centres = unit[:1]
    nearest = unit @ centres[0]
    while len(centres) < num_clusters:
        centres = np.concatenate([centres, unit[[int(nearest.argmin())]]])
        nearest = np.maximum(nearest, unit @ centres[-1])
    for _ in range(ITERATIONS):
        cluster = (unit @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, cluster, unit)
        filled = np.linalg.norm(sums, axis=1) > 1e-6
        centres = np.where(
            filled[:, None], sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6), centres
        )
    return (unit @ centres.T).argmax(axis=1)
