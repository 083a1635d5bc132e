"""TPUs that are not here, for the compiler only."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from jax.experimental import topologies


@pytest.fixture
def absent_tpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[Any]]]:
    """The devices of a slice by its name, such as "v5e:2x2": for tests marked `tpu_compiler`."""
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    was = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # such a program can be kept, but not read without a TPU
    yield lambda name: topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    jax.config.update("jax_enable_compilation_cache", was)
