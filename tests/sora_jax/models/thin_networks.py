"""Random weights of thinned feature networks, in the canonical layout."""

import numpy as np

from sora_jax.models.feature_files import FeatureWeights, expected_shapes, fingerprint_of

DIVISORS = {"inception": 16, "i3d": 8}


def thin_weights(network: str, seed: int = 0) -> FeatureWeights:
    """Kernels that keep a signal's size, and norms of every kind of number."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in expected_shapes(network, DIVISORS[network]).items():
        drawn = rng.standard_normal(shape)
        if name.endswith("variance"):
            drawn = 0.5 + np.abs(drawn)
        elif len(shape) > 1:
            drawn = drawn * np.sqrt(2 / np.prod(shape[1:]))
        else:
            drawn = (1.0 if name.endswith("gamma") else 0.0) + 0.1 * drawn
        tensors[name] = drawn.astype(np.float32)
    return FeatureWeights(
        network, "pytorch-fid" if network == "inception" else "cd-fvd", tensors, fingerprint_of(tensors)
    )
