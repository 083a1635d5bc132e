"""Pretraining Sora-style video generators in JAX: raw videos in, samples and scores out."""

__version__ = "0.1.0"
