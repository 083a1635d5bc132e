"""Pretraining Sora-style video generators in JAX: raw videos in, samples and scores out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora_jax.generation.api import Generator, Sample
    from sora_jax.generation.expansion import Expander
    from sora_jax.generation.options import SampleOptions

__all__ = ["Expander", "Generator", "Sample", "SampleOptions"]
__version__ = "0.1.0"

_HOMES = {
    "Expander": "sora_jax.generation.expansion",
    "Generator": "sora_jax.generation.api",
    "Sample": "sora_jax.generation.api",
    "SampleOptions": "sora_jax.generation.options",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for only then: `import sora_jax` needs no jax."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sora_jax' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
