"""Moments, the Fréchet distance and what is said of its uncertainty, against closed forms, numpy and scipy."""

import numpy as np
import pytest
import scipy.linalg

from data_pipeline.errors import UserError
from sora_jax.evaluation.frechet import (
    ROOTS,
    FixedSide,
    Gaussian,
    Moments,
    bootstrap,
    extrapolate,
    frechet_distance,
    gaussian,
)


def draw(num: int, width: int = 6, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num, width)) @ rng.standard_normal((width, width)) + shift).astype(np.float32)


@pytest.mark.parametrize("ddof", [0, 1])
def test_moments_are_numpys(ddof):
    x = draw(700, shift=100.0)
    found = gaussian(x, ddof)
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64), rowvar=False, ddof=ddof), rtol=1e-10)
    assert found.count == 700


@pytest.mark.parametrize("part", [1, 7, 64, 300])
def test_moments_do_not_know_how_samples_arrive(part):
    x, moments = draw(600), Moments()
    for start in range(0, len(x), part):
        moments.update(x[start : start + part])
    found, whole = moments.gaussian(1), gaussian(x, 1)
    np.testing.assert_array_equal(found.mean, whole.mean)
    np.testing.assert_array_equal(found.covariance, whole.covariance)


def test_one_sample_has_no_covariance():
    with pytest.raises(UserError, match="at least 2 samples, there is 1"):
        gaussian(draw(1), 1)


@pytest.mark.parametrize("root", sorted(ROOTS))
def test_the_distance_is_scipys_in_float64(root):
    a, b = (gaussian(draw(400, 12, seed, shift), 1) for seed, shift in ((0, 0.0), (1, 0.5)))
    product = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * product.real)
    assert frechet_distance(a, b, root) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a, root) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a, root) == pytest.approx(0, abs=1e-6 * np.trace(a.covariance))
    assert FixedSide(a).distance(b) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("root", sorted(ROOTS))
def test_known_gaussians_have_their_closed_form(root):
    """Same axes: the squared gaps of the means and of the deviations."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    s, t = rng.uniform(0.5, 2, (2, 5))
    shift = rng.standard_normal(5)
    a, b = (Gaussian(m, (axes * d**2) @ axes.T, 100) for m, d in ((np.zeros(5), s), (shift, t)))
    assert frechet_distance(a, b, root) == pytest.approx(shift @ shift + np.sum((s - t) ** 2), rel=1e-6)


def test_fewer_samples_than_features_are_measured():
    a, b = (gaussian(draw(8, 12, seed), 1) for seed in (0, 1))
    found = [frechet_distance(a, b, root, 1e-6) for root in sorted(ROOTS)]
    np.testing.assert_allclose(found, found[0], rtol=1e-4)


def test_an_unknown_root_is_an_error():
    a = gaussian(draw(8), 1)
    with pytest.raises(UserError, match="sqrtm"):
        frechet_distance(a, a, "newton")


def test_the_interval_is_as_wide_as_scores_of_other_samples_spread():
    """The deviation over resamplings, beside that over sets drawn anew."""
    rng = np.random.default_rng(0)

    def pair():
        return rng.standard_normal((200, 3)), rng.standard_normal((200, 3)) + 1.0

    scores = [frechet_distance(*(gaussian(side, 1) for side in pair())) for _ in range(200)]
    real, generated = pair()
    score = frechet_distance(gaussian(real, 1), gaussian(generated, 1))
    interval = bootstrap(real, generated, score, 1, 100)
    assert interval.deviation == pytest.approx(np.std(scores), rel=0.35)
    assert interval.low < score < interval.high and interval == bootstrap(real, generated, score, 1, 100)
    assert interval.low < 3.0 < interval.high
    assert bootstrap(real, generated, score, 1, 1) is None
    assert bootstrap(real, real, 0.0, 1, 3).low == 0


def test_the_extrapolation_is_nearer_to_the_truth_than_the_score():
    """Both sets are of one Gaussian, whose distance to itself is 0; the real side has enough samples."""
    rng = np.random.default_rng(0)
    real, generated = gaussian(rng.standard_normal((20_000, 8)), 1), rng.standard_normal((200, 8))
    score = frechet_distance(real, gaussian(generated, 1))
    found = extrapolate(real, generated, 1)
    assert found.sizes[-1] == 200 and found.distances[-1] == pytest.approx(score, rel=1e-6)
    assert found.distances[0] > 3 * score and abs(found.distance) < score / 2
    assert extrapolate(real, generated[:19], 1) is None
