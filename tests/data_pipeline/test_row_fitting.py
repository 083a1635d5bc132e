import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.row_fitting import Capacity, fit_rows


def fit(frames, frame_tokens, text, num_rows: int, capacity: Capacity, may_cut: bool = False, num_first: int = -1):
    frames, frame_tokens, text = (np.asarray(a, np.int64) for a in (frames, frame_tokens, text))
    num_first = len(frames) if num_first < 0 else num_first
    return fit_rows(frames, frame_tokens, text, num_rows, capacity, may_cut, num_first)


def used(result, frame_tokens, text, num_rows: int) -> np.ndarray:
    """[3, R]: tokens, text and segments of each row."""
    placed = result.row >= 0
    amounts = (result.frames * frame_tokens, text, np.ones(len(text)))
    return np.stack([np.bincount(result.row[placed], amount[placed], num_rows) for amount in amounts])


@pytest.mark.parametrize("capacity", [Capacity(500, 60, 8), Capacity(500, 14, 8), Capacity(500, 60, 3)])
@pytest.mark.parametrize("may_cut", [False, True])
def test_no_capacity_is_exceeded_and_the_scarce_one_is_used(capacity: Capacity, may_cut: bool) -> None:
    rng = np.random.default_rng(0)
    frames, frame_tokens, text = rng.integers(1, 20, 400), rng.integers(4, 12, 400), rng.integers(1, 8, 400)
    result = fit(frames, frame_tokens, text, 20, capacity, may_cut)
    rows = used(result, frame_tokens, text, 20)
    limits = np.array([capacity.tokens, capacity.text, capacity.segments])
    assert (rows <= limits[:, None]).all()
    assert (rows.sum(axis=1) / limits / 20).max() > 0.95
    placed = result.row >= 0
    assert may_cut or np.array_equal(result.frames, frames)
    assert (result.frames[placed] >= 1).all() and (result.frames <= frames).all()


def test_later_samples_do_not_move_the_first() -> None:
    rng = np.random.default_rng(1)
    frames, tokens, text = rng.integers(1, 9, 60), rng.integers(4, 9, 60), rng.integers(1, 5, 60)
    alone = fit(frames[:40], tokens[:40], text[:40], 8, Capacity(150, 40, 9))
    together = fit(frames, tokens, text, 8, Capacity(150, 40, 9), num_first=40)
    assert np.array_equal(alone.row, together.row[:40])


def test_cutting_fills_rows_to_the_brim() -> None:
    rng = np.random.default_rng(2)
    frames, ones = rng.integers(1, 30, 200), np.ones(200, np.int64)
    result = fit(frames, ones, ones, 10, Capacity(int(frames.sum()) // 11, 99, 99), may_cut=True)
    assert used(result, ones, ones, 10)[0].min() == int(frames.sum()) // 11


def test_no_row_is_empty_while_another_has_two() -> None:
    result = fit([5, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], 4, Capacity(5, 9, 9))
    assert sorted(result.row.tolist()) == [0, 1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_rows_hold_what_they_take_whoever_came_first(data: st.DataObject) -> None:
    """Few samples in many rows: rows that the first leave empty are filled up, and the others get what is then free."""
    sizes = st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 10))
    frames, frame_tokens, text = np.array(data.draw(st.lists(sizes, min_size=2, max_size=40))).T
    num_first, num_rows = data.draw(st.integers(1, len(frames))), data.draw(st.integers(1, 12))
    capacity = Capacity(data.draw(st.integers(8, 99)), data.draw(st.integers(10, 30)), data.draw(st.integers(1, 6)))
    may_cut = data.draw(st.booleans())
    frames = np.minimum(frames, capacity.tokens // frame_tokens)
    result = fit(frames, frame_tokens, text, num_rows, capacity, may_cut, num_first)
    rows = used(result, frame_tokens, text, num_rows)
    assert (rows <= np.array([[capacity.tokens], [capacity.text], [capacity.segments]])).all()
    alone = fit(frames[:num_first], frame_tokens[:num_first], text[:num_first], num_rows, capacity, may_cut)
    assert np.array_equal(alone.row, result.row[:num_first])
    held = np.bincount(alone.row[alone.row >= 0], minlength=num_rows)
    assert held.min() >= 1 or held.max() <= 1
