"""Sweeps: many runs of one config with a few fields changed, as one resumable job and one table."""
