import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.known_masks import KnownProbabilities, draw_known

GRID = (5, 6, 8)


def masks(probabilities: KnownProbabilities, grid=GRID, count: int = 200) -> list[np.ndarray | None]:
    return [draw_known(np.random.default_rng(n), grid, probabilities) for n in range(count)]


def per_frame(mask: np.ndarray) -> np.ndarray:
    """[F]: the frames' known share, which must be 0 or 1 for masks of whole frames."""
    return mask.mean(axis=(1, 2))


def test_each_kind_of_mask() -> None:
    assert all(mask is None for mask in masks(KnownProbabilities()))
    assert all(per_frame(mask).tolist() == [1, 0, 0, 0, 0] for mask in masks(KnownProbabilities(first=1.0)))
    assert all(per_frame(mask).tolist() == [1, 0, 0, 0, 1] for mask in masks(KnownProbabilities(ends=1.0)))
    lengths = {int(per_frame(mask).sum()) for mask in masks(KnownProbabilities(prefix=1.0))}
    assert lengths == {1, 2, 3, 4}
    for mask in masks(KnownProbabilities(prefix=1.0)):
        assert (np.diff(per_frame(mask)) <= 0).all()
    for mask in masks(KnownProbabilities(frames=1.0)):
        assert mask is None or set(per_frame(mask).tolist()) == {0.0, 1.0}


def test_a_region_is_one_box_in_every_frame_or_all_but_it() -> None:
    inside = outside = 0
    for mask in masks(KnownProbabilities(region=1.0)):
        assert (mask == mask[:1]).all()
        inside += is_box(mask[0])
        outside += is_box(~mask[0])
    assert inside > 50 and outside > 50 and inside + outside == 200


def is_box(mask: np.ndarray) -> bool:
    return np.array_equal(mask, np.outer(mask.any(axis=1), mask.any(axis=0)))


def test_kinds_come_as_often_as_their_probabilities() -> None:
    drawn = masks(KnownProbabilities(first=0.3, region=0.2), count=2_000)
    assert abs(np.mean([mask is None for mask in drawn]) - 0.5) < 0.05


def test_something_is_left_to_generate() -> None:
    every = KnownProbabilities(first=0.2, prefix=0.2, ends=0.2, frames=0.2, region=0.2)
    for grid in ((1, 1, 1), (1, 4, 4), (2, 1, 1), (3, 2, 1)):
        for mask in masks(every, grid, 300):
            assert mask is None or (mask.shape == grid and mask.any() and not mask.all())


def test_probabilities_above_one_are_an_error() -> None:
    with pytest.raises(UserError, match="at most 1"):
        KnownProbabilities(first=0.7, region=0.4)
