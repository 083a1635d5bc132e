"""A name for weights: what a caption, or a sample, says of the network that made it."""

import hashlib
from typing import Any

import jax
import numpy as np

from sora_jax.parallel import path_of


def fingerprint_of(params: Any, *facts: object) -> str:
    """SHA-256 over the parameters by their names, and over all else that decides what the network does."""
    digest = hashlib.sha256(" ".join(map(str, facts)).encode())
    for path, value in jax.tree_util.tree_leaves_with_path(jax.device_get(params)):
        digest.update(path_of(path).encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
