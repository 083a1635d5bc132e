"""KID, precision and recall, density and coverage, Inception score: written out, and sets whose answer is known."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.evaluation.feature_scores import inception_score, kernel_distance, manifolds


def test_kid_is_the_unbiased_mmd_written_out():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 4)), rng.standard_normal((9, 4)) + 0.5

    def kernel(a, b):
        return (np.dot(a, b) / 4 + 1) ** 3

    within = [np.mean([kernel(s[i], s[j]) for i in range(9) for j in range(9) if i != j]) for s in (x, y)]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    found = kernel_distance(x, y)
    assert found.mean == pytest.approx(expected, rel=1e-9) and found.deviation == pytest.approx(0, abs=1e-9)
    assert abs(kernel_distance(rng.standard_normal((100, 4)), rng.standard_normal((100, 4))).mean) < 0.3
    with pytest.raises(UserError, match="at least 2 samples on each side, there are 1 and 9"):
        kernel_distance(x[:1], y)


def test_manifolds_are_balls_to_the_kth_neighbour():
    rng = np.random.default_rng(0)
    real, generated = rng.standard_normal((30, 3)), rng.standard_normal((40, 3)) * 0.6 + 0.4

    def radius(points, k):
        return [np.sort([np.linalg.norm(p - q) for q in points])[k] for p in points]  # 0 is the point itself

    r3, r5, g3 = radius(real, 3), radius(real, 5), radius(generated, 3)
    inside = np.array([[np.linalg.norm(g - r) <= r3[j] for j, r in enumerate(real)] for g in generated])
    within = np.array([[np.linalg.norm(g - r) <= r5[j] for j, r in enumerate(real)] for g in generated])
    covered = np.array([[np.linalg.norm(g - r) <= g3[i] for r in real] for i, g in enumerate(generated)])
    found = manifolds(real, generated)
    assert found.precision == pytest.approx(inside.any(1).mean())
    assert found.recall == pytest.approx(covered.any(0).mean())
    assert found.density == pytest.approx(within.sum() / (5 * 40))
    assert found.coverage == pytest.approx(within.any(0).mean())


def test_known_sets():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 3))
    same, far = manifolds(x, x), manifolds(x, x + 100)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    collapsed = manifolds(x, np.repeat(x[:1], 50, 0) + 1e-3 * rng.standard_normal((50, 3)))
    assert collapsed.precision == 1 and collapsed.recall < 0.1 and collapsed.coverage < 0.3
    with pytest.raises(UserError, match="at least 7 samples, there are 6 and 50"):
        manifolds(x[:6], x)


def test_inception_score_counts_classes():
    """Certain and evenly spread over k classes in each tenth: k. Uncertain: 1."""
    certain = 1000.0 * np.eye(5)[np.arange(100) % 5]
    assert inception_score(certain).mean == pytest.approx(5)
    assert inception_score(np.zeros((100, 5))).mean == pytest.approx(1)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 6))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    parts = np.split(p, 10)
    expected = [np.exp(np.mean(np.sum(q * np.log(q / q.mean(0)), 1))) for q in parts]
    found = inception_score(logits)
    assert found.mean == pytest.approx(np.mean(expected)) and found.deviation == pytest.approx(np.std(expected))
