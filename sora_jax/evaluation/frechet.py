"""The Fréchet distance between two sets of features, how uncertain it is, and what it would be with endless samples.

    d² = |m_1 - m_2|² + tr(S_1 + S_2 - 2 (S_1 S_2)^½)        (Dowson & Landau 1982; Heusel et al. 2017, eq. 6)

Moments are summed in float64, in blocks of a fixed size in the order of the samples: how features arrive changes no bit
of them. Three ways to the trace of the root are those of the published implementations; in exact arithmetic they agree.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64

from data_pipeline.errors import UserError
from sora_jax.config import choose

BLOCK = 256
"""So many samples are summed at a time."""
SMALLEST_SINGULAR = 1e-10
"""Below it TensorFlow-GAN takes no root of a singular value."""
NUM_SIZES = 15
"""At so many numbers of samples the distance is measured to extrapolate it (Chong & Forsyth 2020)."""
Features = Float[np.ndarray, "_ D"]
Matrix = Float64[np.ndarray, "D D"]


@dataclass(frozen=True)
class Gaussian:
    """The moments of a set of features."""

    mean: Float64[np.ndarray, " D"]
    covariance: Matrix
    count: int


class Moments:
    """The running moments of features that arrive in parts of any size.

    Sums are of differences to the first sample, so that a mean far from zero costs no digits of the covariance.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0
        self._first: np.ndarray | None = None
        self._sum: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0

    def update(self, features: Features) -> None:
        """Adds samples, in their order."""
        if not len(features):
            return
        if self._first is None:
            self._first = features[0].astype(np.float64)
        self._waiting.append(features)
        self._num_waiting += len(features)
        if self._num_waiting >= BLOCK:
            waiting = np.concatenate(self._waiting)
            whole = len(waiting) // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                self._add(waiting[start : start + BLOCK])
            self._waiting, self._num_waiting = [waiting[whole:]], len(waiting) - whole

    def _add(self, block: np.ndarray) -> None:
        shifted = block.astype(np.float64) - self._first
        self._sum = self._sum + shifted.sum(0)
        self._squares = self._squares + shifted.T @ shifted
        self.count += len(block)

    def gaussian(self, ddof: int) -> Gaussian:
        """The moments so far; no more can be added. Raises UserError for fewer than two samples."""
        for rest in (np.concatenate(self._waiting),) if self._num_waiting else ():
            self._add(rest)
        self._waiting, self._num_waiting = [], 0
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, there is {self.count}: give more")
        mean = self._sum / self.count
        scatter = self._squares - self.count * np.outer(mean, mean)
        return Gaussian(mean + self._first, (scatter + scatter.T) / 2 / (self.count - ddof), self.count)


def gaussian(features: Features, ddof: int) -> Gaussian:
    """The moments of all features at once."""
    moments = Moments()
    moments.update(features)
    return moments.gaussian(ddof)


def frechet_distance(a: Gaussian, b: Gaussian, root: str = "symmetric", offset: float = 0.0) -> float:
    """The squared distance, as every FID and FVD is. `root` names the way to tr (S_1 S_2)^½; `offset`: see `sqrtm`."""
    trace = choose(ROOTS, root, "the root")(a.covariance, b.covariance, offset)
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace)


def _sqrtm(a: np.ndarray, b: np.ndarray, offset: float) -> float:
    """scipy's Schur method (pytorch-fid, StyleGAN-V); where it fails, again with `offset` on both diagonals, or else
    by symmetric eigenvalues."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a product is singular: it is, with fewer samples than features
        root = scipy.linalg.sqrtm(a @ b)
        if offset and not np.all(np.isfinite(root)):
            added = np.eye(len(a)) * offset
            root = scipy.linalg.sqrtm((a + added) @ (b + added))
    return float(np.trace(root).real) if np.all(np.isfinite(root)) else _symmetric(a, b, 0.0)


def _svd(a: np.ndarray, b: np.ndarray, offset: float) -> float:
    """tr (a^½ b a^½)^½ with each root by singular values (TensorFlow-GAN, VideoGPT)."""
    root = _svd_root(a)
    return float(np.trace(_svd_root(root @ b @ root)))


def _svd_root(matrix: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix)
    return (u * np.where(s < SMALLEST_SINGULAR, s, np.sqrt(s))) @ vt


def _eigenvalues(a: np.ndarray, b: np.ndarray, offset: float) -> float:
    """Roots of the product's eigenvalues (torch-fidelity)."""
    return float(np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum())


def _symmetric(a: np.ndarray, b: np.ndarray, offset: float) -> float:
    """tr (a^½ b a^½)^½ by symmetric eigenvalues: ten times as fast as the others, and never complex."""
    root = symmetric_root(a)
    return trace_of_root(root, b)


def symmetric_root(matrix: Matrix) -> Matrix:
    """The positive root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def trace_of_root(root: Matrix, other: Matrix) -> float:
    """tr (root other root)^½."""
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum())


ROOTS: dict[str, Callable[[np.ndarray, np.ndarray, float], float]] = {
    "sqrtm": _sqrtm,
    "svd": _svd,
    "eigenvalues": _eigenvalues,
    "symmetric": _symmetric,
}


class FixedSide:
    """Distances of many Gaussians to one, whose root is taken once."""

    def __init__(self, fixed: Gaussian):
        self.fixed, self.root = fixed, symmetric_root(fixed.covariance)

    def distance(self, other: Gaussian) -> float:
        gap = self.fixed.mean - other.mean
        traces = np.trace(self.fixed.covariance) + np.trace(other.covariance)
        return float(gap @ gap + traces - 2 * trace_of_root(self.root, other.covariance))


@dataclass(frozen=True)
class Interval:
    """The deviation of a score over resampled sets, and the score plus and minus 1.96 of it (not below 0)."""

    deviation: float
    low: float
    high: float
    num_resamples: int


def bootstrap(
    real: Features, generated: Features, score: float, ddof: int, num: int, seed: int = 0, rows: int = 1
) -> Interval | None:
    """How far `score` would move with other samples: both sets drawn anew with replacement, `num` times (Efron 1979).

    The interval is around the score itself: distances of resampled sets are larger by their bias, as they hold fewer
    different samples, but spread as much. Each `rows` rows are one sample. None for fewer than two resamples.
    """
    if num < 2:
        return None
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        sides = [gaussian(side[_drawn(len(side) // rows, rows, rng)], ddof) for side in (real, generated)]
        found.append(frechet_distance(*sides))
    deviation = float(np.std(found, ddof=1))
    return Interval(deviation, max(0.0, score - 1.96 * deviation), score + 1.96 * deviation, num)


def _drawn(num: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `num` samples that are drawn with replacement."""
    samples = np.sort(rng.integers(0, num, num))
    return (samples[:, None] * rows + np.arange(rows)).ravel()


@dataclass(frozen=True)
class Extrapolation:
    """The distance that endless generated samples would have, by a line through `sizes` and `distances`."""

    distance: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolate(real: Gaussian, generated: Features, ddof: int, seed: int = 0) -> Extrapolation | None:
    """FID∞ (Chong & Forsyth 2020, algorithm 1): the distance is linear in 1 / N, measured for `NUM_SIZES` subsets.

    None for fewer than 20 samples. It frees the score of the number of generated samples; that of real ones, which is
    the same for all models, stays.
    """
    if len(generated) < 20:
        return None
    rng, fixed = np.random.default_rng(seed), FixedSide(real)
    sizes = np.unique(np.linspace(max(len(generated) // 10, 10), len(generated), NUM_SIZES).astype(int))
    distances = [
        fixed.distance(gaussian(generated[np.sort(rng.permutation(len(generated))[:size])], ddof)) for size in sizes
    ]
    _, at_infinity = np.polyfit(1 / sizes, distances, 1)
    return Extrapolation(float(at_infinity), tuple(map(int, sizes)), tuple(distances))
