import importlib.util
from pathlib import Path
from types import ModuleType

import jax
import pytest

TOY = Path(__file__).with_name("toy_run.py")


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """`toy_run.py`: a task that trains in seconds."""
    spec = importlib.util.spec_from_file_location("toy_run", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def one_device() -> list[jax.Device]:
    """Most tests need no mesh, and compile faster without one."""
    return jax.devices()[:1]
