import mmap

import numpy as np

from sora_jax.training.stragglers import Stragglers, find_slowest, is_straggler, memory


def test_the_slowest_process_is_named_only_where_it_matters():
    slowest, middle_s = find_slowest({0: 0.01, 1: 0.30, 2: 0.02, 3: 0.03})
    assert (slowest, middle_s) == (1, 0.02)
    assert is_straggler(0.30, middle_s, 0.5)
    assert not is_straggler(0.30, middle_s, 3.0), "hidden behind what the devices do"
    assert not is_straggler(0.30, 0.20, 0.5), "all are slow"


def test_one_process_has_nobody_to_compare_with():
    assert Stragglers(print).compare({"host_seconds": 1.0, "step_seconds": 1.0}) == {}


def test_memory_grows_by_what_is_allocated():
    before = memory()["host_memory_gib"]
    # Pages of the system's own: the allocator may serve an array from what earlier tests have freed and it has kept.
    held = np.frombuffer(mmap.mmap(-1, 2**26), np.uint8)
    held[:] = 1
    assert memory()["host_memory_gib"] - before > 0.03 and held.all()
