"""Scaling laws: how the held-out loss falls with parameters and with data, and which size is best for a budget.

    L(N, D) = E + A / N^a + B / D^b                (Hoffmann et al. 2022, approach 3)

N is parameters, D training tokens, C = 6 N D FLOPs (attention's products are left out, as they do). The fit minimises
Huber losses of log L from several starts; its intervals are of runs drawn anew with replacement. For a budget C the
best size is N = G (C / 6)^(b / (a + b)) with G = (a A / (b B))^(1 / (a + b)), their equation 4.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.special import logsumexp

from data_pipeline.errors import UserError
from sora_jax.training.compute import FLOPS

HUBER = 1e-3
LEAST_RUNS = 6
STARTS = tuple(itertools.product((1.0, 6.0), (1.0, 6.0), (0.3, 0.8), (0.4,)))
"""log A, log B, the share of the smallest loss that E begins with, and the exponents."""


@dataclass(frozen=True)
class Point:
    """One finished run."""

    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        return FLOPS * self.parameters * self.tokens


@dataclass(frozen=True)
class Law:
    """The five numbers of the law, and the root of the mean squared error of log L."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float
    error: float

    def loss(self, parameters: float | Float[np.ndarray, " n"], tokens: float | Float[np.ndarray, " n"]):
        """L(N, D)."""
        return self.e + self.a * parameters**-self.alpha + self.b * tokens**-self.beta

    def best(self, flops: float) -> Point:
        """The size and the data that a budget is spent best on, and the loss there."""
        both = self.alpha + self.beta
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        parameters = scale * (flops / FLOPS) ** (self.beta / both)
        tokens = flops / FLOPS / parameters
        return Point(parameters, tokens, float(self.loss(parameters, tokens)))


def fit(points: Sequence[Point], near: Law | None = None) -> Law:
    """The law of these runs, searched from several starts, or from a law that is `near`.

    Raises UserError for too few of them, or for one size or one amount of data alone.
    """
    check(points)
    start = None if near is None else _unknowns(near)
    n, d, loss = (np.log([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss"))

    def residuals(x: Float[np.ndarray, " 5"]) -> Float[np.ndarray, " n"]:
        return _log_loss(x, n, d) - loss

    lowest = float(loss.min())
    bounds = ([-20, -20, -30, 0.01, 0.01], [60, 60, lowest, 3, 3])
    starts = [np.array([a, b, lowest + np.log(share), k, k]) for a, b, share, k in STARTS] if start is None else [start]
    tries = [least_squares(residuals, x, bounds=bounds, loss="huber", f_scale=HUBER, max_nfev=200) for x in starts]
    found = min(tries, key=lambda result: result.cost).x
    error = float(np.sqrt(np.mean((_log_loss(found, n, d) - loss) ** 2)))
    log_a, log_b, log_e, alpha, beta = map(float, found)
    return Law(float(np.exp(log_e)), float(np.exp(log_a)), alpha, float(np.exp(log_b)), beta, error)


def _unknowns(law: Law) -> np.ndarray:
    return np.array([np.log(law.a), np.log(law.b), np.log(law.e) - 1e-3, law.alpha, law.beta])


def _log_loss(x: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    log_a, log_b, log_e, alpha, beta = x
    return logsumexp(np.stack([log_a - alpha * n, log_b - beta * d, np.full_like(n, log_e)]), axis=0)


def check(points: Sequence[Point]) -> None:
    """Raises UserError for what determines no law."""
    sizes, amounts = len({p.parameters for p in points}), len({p.tokens for p in points})
    if len(points) < LEAST_RUNS or sizes < 2 or amounts < 2:
        raise UserError(
            f"a law of five numbers needs at least {LEAST_RUNS} finished runs of 2 sizes and 2 amounts of data; there "
            f"are {len(points)} of {sizes} sizes and {amounts} amounts: let the sweep go on"
        )
    if min(min(p.parameters, p.tokens, p.loss) for p in points) <= 0:
        raise UserError("parameters, tokens and losses must be above 0: a law of powers cannot hold otherwise")


def resampled(points: Sequence[Point], num: int, seed: int = 0) -> list[Law]:
    """The laws of runs drawn with replacement, of the draws that determine one."""
    rng, laws, whole = np.random.default_rng(seed), [], fit(points)
    for _ in range(num):
        drawn = [points[i] for i in rng.integers(0, len(points), len(points))]
        if len({p.parameters for p in drawn}) > 1 and len({p.tokens for p in drawn}) > 1:
            laws.append(fit(drawn, whole))
    return laws


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The middle 95%, of ten values at least."""
    return None if len(values) < 10 else (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975)))
