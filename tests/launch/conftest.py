from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from sora_jax.training.checkpoint import find_checkpoint, load_parts, saved_shapes


def final_arrays(run: Path) -> list[np.ndarray]:
    """All arrays of a run's newest checkpoint: parameters, their average, the optimizer's state."""
    path, sharding = find_checkpoint(run), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    parts = {part: saved_shapes(path, part) for part in ("params", "ema", "state")}
    shapes = jax.tree.map(lambda x: x.update(sharding=sharding), parts)
    return [np.asarray(x) for x in jax.tree.leaves(load_parts(path, shapes))]


@pytest.fixture(scope="session")
def assert_same_runs() -> Callable[[Path, Path], None]:
    """Fails unless the newest checkpoints of two runs are bitwise the same."""

    def check(one: Path, other: Path) -> None:
        ours, theirs = final_arrays(one), final_arrays(other)
        assert find_checkpoint(one).name == find_checkpoint(other).name
        assert len(ours) == len(theirs) > 0 and all(map(np.array_equal, ours, theirs))

    return check
