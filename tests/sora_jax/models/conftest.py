"""TPUs that are not here, for the compiler only."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jax.experimental import topologies

from sora_jax.training.compile_cache import without_compile_cache


@pytest.fixture
def absent_tpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[Any]]]:
    """The devices of a slice by its name, such as "v5e:2x2": for tests marked `tpu_compiler`."""
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    with without_compile_cache():
        yield lambda name: topologies.get_topology_desc(platform="tpu", topology_name=name).devices
