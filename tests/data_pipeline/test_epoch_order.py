import numpy as np
import pytest

from data_pipeline.epoch_order import EpochOrder


@pytest.mark.parametrize("num_clips", [1, 2, 5, 8, 9, 17, 100, 1023, 8191, 8192, 8193, 20_001])
def test_every_epoch_is_another_permutation(num_clips: int) -> None:
    order = EpochOrder(num_clips, key=3)
    orders = []
    for number in range(3):
        epochs, clips = order.clips(np.arange(number * num_clips, (number + 1) * num_clips))
        assert (epochs == number).all()
        assert np.array_equal(np.sort(clips), np.arange(num_clips))
        orders.append(clips)
    if num_clips >= 8:
        assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])


def test_it_is_a_function_of_position_and_key() -> None:
    order = EpochOrder(20_000, key=3)
    positions = np.array([5, 10**13, 19_999, 20_000])
    together = order.clips(positions)[1]
    assert together.tolist() == [int(order.clips(positions[n : n + 1])[1][0]) for n in range(4)]
    assert not np.array_equal(EpochOrder(20_000, key=4).clips(np.arange(100)), order.clips(np.arange(100)))


def test_any_stretch_of_an_epoch_has_the_mixture_of_the_whole() -> None:
    lengths = np.sort(np.exp(np.random.default_rng(0).normal(2.3, 0.8, 20_000)))
    sums = lengths[EpochOrder(20_000, key=3).clips(np.arange(20_000))[1]].reshape(20, 1_000).sum(axis=1)
    drawn_at_random = lengths.std() / np.sqrt(1_000) / lengths.mean()
    assert sums.std() / sums.mean() < drawn_at_random / 4
