"""Random weights of thinned feature networks, in the canonical layout."""

from sora_jax.evaluation.feature_speed import random_weights
from sora_jax.models.feature_files import FeatureWeights


def thin_weights(network: str, seed: int = 0) -> FeatureWeights:
    """Kernels that keep a signal's size, and norms of every kind of number."""
    return random_weights(network, is_thin=True, seed=seed)
