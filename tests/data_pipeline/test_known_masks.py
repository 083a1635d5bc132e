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
    for mask in masks(KnownProbabilities(frames=1.0)):
        assert mask is None or set(per_frame(mask).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kind, sign", [("prefix", -1), ("suffix", 1)])
def test_one_end_is_known_for_every_length_alike(kind: str, sign: int) -> None:
    drawn = [per_frame(mask) for mask in masks(KnownProbabilities(**{kind: 1.0}), count=400)]
    assert all((sign * np.diff(frames) >= 0).all() for frames in drawn)
    counts = np.bincount([int(frames.sum()) for frames in drawn], minlength=5)
    assert counts[0] == 0 and (counts[1:] > 60).all()


def test_both_ends_are_known_with_one_gap_and_several_latents_at_either() -> None:
    seen = set()
    for mask in masks(KnownProbabilities(ends=1.0), count=400):
        frames = per_frame(mask)
        gap = np.flatnonzero(frames == 0)
        assert frames[0] == frames[-1] == 1 and len(gap) == gap[-1] - gap[0] + 1
        seen.add((int(gap[0]), int(len(frames) - 1 - gap[-1])))
    assert seen == {(1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (3, 1)}


def test_a_region_is_one_box_or_all_but_it_in_every_frame_or_in_a_run_of_frames() -> None:
    inside = outside = always = 0
    for mask in masks(KnownProbabilities(region=1.0)):
        assert is_box(mask) != is_box(~mask)
        inside += is_box(mask)
        outside += is_box(~mask)
        always += bool((mask == mask[:1]).all())
    assert inside > 50 and outside > 50 and inside + outside == 200 and 80 < always < 150


def is_box(mask: np.ndarray) -> bool:
    sides = [mask.any(axis=tuple(d for d in range(3) if d != axis)) for axis in range(3)]
    runs = all(np.count_nonzero(np.diff(np.pad(side.astype(int), 1))) == 2 for side in sides)
    return runs and np.array_equal(mask, sides[0][:, None, None] & sides[1][:, None] & sides[2])


def test_kinds_come_as_often_as_their_probabilities() -> None:
    drawn = masks(KnownProbabilities(first=0.3, region=0.2), count=2_000)
    assert abs(np.mean([mask is None for mask in drawn]) - 0.5) < 0.05


def test_something_is_left_to_generate() -> None:
    every = KnownProbabilities(first=0.1, prefix=0.1, suffix=0.2, ends=0.2, frames=0.2, region=0.2)
    for grid in ((1, 1, 1), (1, 4, 4), (2, 1, 1), (3, 2, 1)):
        for mask in masks(every, grid, 300):
            assert mask is None or (mask.shape == grid and mask.any() and not mask.all())


def test_probabilities_above_one_are_an_error() -> None:
    with pytest.raises(UserError, match="at most 1"):
        KnownProbabilities(first=0.7, region=0.4)
