"""Curation of small public clips (DROID's 320x180 and others), of which the defaults would leave nothing.

    sora-jax data curate --config configs/curation_shared.py --inputs ../shared/data/clips --out runs/curated

A short side of 128 pixels, clips from one second on, rates from 5/s on (robot data are slow), fewer bits (DROID's site
has 0.03 a pixel).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.filters = dict(min_duration_s=1.0, min_short_side=128, min_fps=5.0, min_bits_per_pixel=0.01)
    config.output = dict(short_sides=(128,), vocab_size=2048)
    return config
