"""The strict session: eight fake devices, every annotated shape checked at run time, a persistent compile cache.

The environment must be set before the first import of jax, so this file sets it at import time: pytest loads
it before any test module, in each xdist worker anew.
"""

import importlib.util
import mmap
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

from tests.launch.slurm_cluster import SlurmCluster

REPOSITORY = Path(__file__).resolve().parents[1]

NUM_DEVICES = 8

# Most of the suite's time is compilation of programs that run once: LLVM's optimisations cost a third of it, fusions
# by way of MLIR half of the rest.
QUICK_COMPILATION = "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"


def is_known(flag: str) -> bool:
    """Whether this version of XLA has the flag: it ends the process at one that it does not know."""
    jaxlib = Path(next(iter(importlib.util.find_spec("jaxlib").submodule_search_locations)))
    name = flag.strip("-").partition("=")[0].encode()
    for path in (*jaxlib.glob("libjax_common.*"), *jaxlib.glob("_jax.*"), *jaxlib.glob("xla_extension.*")):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(name) >= 0:
                return True
    return False


os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        f"--xla_force_host_platform_device_count={NUM_DEVICES}",
        *filter(is_known, QUICK_COMPILATION),
    )
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell ignores SIGINT in what it starts in the background, and so do all that inherit it: tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every annotated function of both packages is checked, shapes and dtypes, on every call in the tests. An int where a
# float is asked for is fine, as PEP 484 has it.
jaxtyping.install_import_hook(
    ["sora_jax", "data_pipeline"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips and odd files, outside the repository (`SORA_JAX_SHARED`, by default `../shared`)."""
    shared = Path(os.environ.get("SORA_JAX_SHARED", REPOSITORY.parent / "shared"))
    if not (shared / "data").is_dir():
        pytest.skip(f"no shared data at {shared}: set SORA_JAX_SHARED to the folder that holds data/")
    return shared / "data"


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Slurm on this machine, with two nodes of one core: for tests marked `slurm`, which `make test-all` runs."""
    with SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster
