import numpy as np
import pytest

from data_pipeline.permutation import hash_u64, key_from, permute, shuffle, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4097])
def test_permute_is_a_permutation_that_depends_on_key_and_stream(size: int) -> None:
    values = np.arange(size)
    permuted = permute(1, 0, size, values)
    assert np.array_equal(np.sort(permuted), values)
    if size > 60:
        for other in (permute(2, 0, size, values), permute(1, 1, size, values)):
            assert np.array_equal(np.sort(other), values)
            assert (other == permuted).mean() < 0.1
        assert (permuted == values).mean() < 0.1


def test_permute_of_many_streams_at_once_equals_one_at_a_time() -> None:
    sizes = np.array([5, 17, 5, 300])
    together = permute(9, np.arange(4), sizes, np.array([4, 3, 2, 1]))
    alone = [permute(9, n, size, value)[0] for n, (size, value) in enumerate(zip(sizes, [4, 3, 2, 1], strict=True))]
    assert together.tolist() == alone


def test_uniform_is_uniform_and_a_function_of_its_counters() -> None:
    draws = uniform(3, np.arange(200_000), 5)
    assert draws.min() >= 0 and draws.max() < 1
    histogram = np.histogram(draws, 100, (0, 1))[0]
    assert np.square(histogram - 2_000).sum() / 2_000 < 99 + 5 * np.sqrt(2 * 99)  # chi-square, five deviations
    assert uniform(3, 77, 5) == draws[77]
    assert abs(np.corrcoef(draws, uniform(3, np.arange(200_000), 6))[0, 1]) < 0.012


def test_known_values_do_not_change() -> None:
    """The order of a run must outlive library versions: these are splitmix64's, computed by hand."""
    assert key_from("a", 1) == key_from("a", 1) != key_from("a", "1", "")
    assert hash_u64(0, 0) == 0xE220A8397B1DCDAF
    assert sorted(shuffle(4, 100).tolist()) == list(range(100))
