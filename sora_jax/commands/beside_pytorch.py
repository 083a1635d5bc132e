"""What every `sora-jax bench … --pytorch` needs: memory for both, and a clear word where PyTorch is not installed."""

import contextlib
import os
from collections.abc import Iterator

from data_pipeline.errors import UserError


def leave_memory() -> None:
    """Call it before jax starts, which otherwise takes most of a GPU's memory for itself."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@contextlib.contextmanager
def importing(extra: str) -> Iterator[None]:
    """Raises UserError that names the optional `extra` if what is imported within is not installed."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"--pytorch needs the extra '{extra}': pip install 'sora-jax[{extra}]'") from error
