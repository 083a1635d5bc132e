"""Scores of features beside the Fréchet distance: KID, precision, recall, density, coverage, Inception score."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from data_pipeline.errors import UserError

Features = Float[np.ndarray, "_ D"]
ROWS = 1024
"""So many rows of a matrix of distances are in memory at a time."""
KID_SUBSETS, KID_SIZE = 100, 1000
NEIGHBOURS_PR, NEIGHBOURS_DC = 3, 5
"""The published numbers of neighbours (Kynkäänniemi et al. 2019; Naeem et al. 2020)."""
SPLITS = 10


@dataclass(frozen=True)
class Spread:
    """A mean and the deviation over subsets."""

    mean: float
    deviation: float


def kernel_distance(real: Features, generated: Features, seed: int = 0) -> Spread:
    """KID (Bińkowski et al. 2018): the unbiased squared MMD of the kernel (x·y / D + 1)³, over 100 subsets of 1000.

    Smaller sets give smaller subsets. Raises UserError for fewer than 2 samples on a side.
    """
    size = min(KID_SIZE, len(real), len(generated))
    if size < 2:
        raise UserError(f"KID needs at least 2 samples on each side, there are {len(real)} and {len(generated)}")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(KID_SUBSETS):
        x, y = (side[rng.permutation(len(side))[:size]].astype(np.float64) for side in (real, generated))
        within = [_kernel(side, side) for side in (x, y)]
        pairs = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in within)
        found.append(pairs - 2 * _kernel(x, y).mean())
    return Spread(float(np.mean(found)), float(np.std(found)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    kernel = x @ y.T / x.shape[1] + 1
    return kernel * kernel * kernel  # a power of floats takes ten times as long


@dataclass(frozen=True)
class Manifolds:
    """How the two sets cover each other, by the balls around samples that reach their k-th neighbours.

    `precision`: the share of generated samples within a real ball; `recall`: of real ones within a generated ball (k
    = 3, Kynkäänniemi et al. 2019). `density`: in how many real balls a generated sample is, over k; `coverage`: the
    share of real balls with a generated sample (k = 5, Naeem et al. 2020).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(real: Features, generated: Features) -> Manifolds:
    """Raises UserError for fewer than 7 samples on a side: one and five neighbours, and another."""
    least = NEIGHBOURS_DC + 2
    if min(len(real), len(generated)) < least:
        raise UserError(f"density needs at least {least} samples, there are {len(real)} and {len(generated)}")
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    real_radii = _radii(real, (NEIGHBOURS_PR, NEIGHBOURS_DC))
    generated_radii = _radii(generated, (NEIGHBOURS_PR,))
    in_real_pr, in_generated, in_real_dc = 0, np.zeros(len(real), bool), np.zeros(len(real), int)
    for start in range(0, len(generated), ROWS):
        squares = _squares(generated[start : start + ROWS], real)
        in_real_pr += _any(squares <= real_radii[0])
        in_real_dc += (squares <= real_radii[1]).sum(0)
        in_generated |= (squares <= generated_radii[0][start : start + ROWS, None]).any(0)
    return Manifolds(
        precision=in_real_pr / len(generated),
        recall=float(in_generated.mean()),
        density=float(in_real_dc.sum() / (NEIGHBOURS_DC * len(generated))),
        coverage=float((in_real_dc > 0).mean()),
    )


def _any(inside: Bool[np.ndarray, "rows N"]) -> int:
    return int(inside.any(1).sum())


def _radii(x: np.ndarray, neighbours: tuple[int, ...]) -> list[np.ndarray]:
    """The squared distance of each sample to its k-th neighbour, itself not counted, for every k."""
    found = []
    for start in range(0, len(x), ROWS):
        squares = _squares(x[start : start + ROWS], x)
        squares[np.arange(len(squares)), np.arange(start, start + len(squares))] = -1.0
        found.append(np.sort(squares, 1)[:, list(neighbours)])
    return list(np.concatenate(found).T)


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T, 0)


def inception_score(logits: Features) -> Spread:
    """exp of the mean KL divergence of p(y|x) from p(y), over 10 parts in their order (Salimans et al. 2016)."""
    logits = logits.astype(np.float64)
    log_p = logits - logsumexp(logits, 1, keepdims=True)
    scores = []
    for part in np.array_split(log_p, min(SPLITS, len(log_p))):
        mean = logsumexp(part, 0) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - mean)).sum(1).mean()))
    return Spread(float(np.mean(scores)), float(np.std(scores)))
