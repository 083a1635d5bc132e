"""Procedural captioned videos with exact ground truth: what a model can be checked against to the pixel."""
