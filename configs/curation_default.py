"""Curation for pretraining, with limits from published practice.

    sora-jax data curate --config configs/curation_default.py --inputs FOLDER --out runs/curated

Sources of the limits. OS2: Open-Sora 2.0 (Peng et al. 2025, arXiv:2503.09642, section on data): clips below 2 s, bits
per pixel below 0.02, rates below 16/s and aspects outside 1/3 to 3 are dropped before shot detection; then motion, blur
(variance of the Laplacian), text, aesthetics and camera jitter are filtered. SVD: Stable Video Diffusion (Blattmann et
al. 2023, arXiv:2311.15127): cascaded cut detection, static clips by optical flow, text and aesthetics. PSD:
PySceneDetect's defaults. What is not marked is ours; docs/curation.md has what was measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.shots = dict(
        adaptive_threshold=3.0,  # PSD
        min_content=15.0,  # PSD
        fade_luma=12.0,  # PSD
        flash_s=0.4,
        dissolve_s=(0.5, 1.0, 1.5),
        trim_s=0.0,
    )
    config.filters = dict(
        min_duration_s=2.0,  # OS2
        max_duration_s=20.0,  # longer shots become windows; Sora's first clips were up to a minute long
        min_short_side=256,  # OS2's first stage trains at 256 pixels; nothing is ever enlarged
        min_aspect=1 / 3,  # OS2
        max_aspect=3.0,  # OS2
        min_fps=16.0,  # OS2
        min_bits_per_pixel=0.02,  # OS2
        min_sharpness=10.0,  # OS2's measure; the limit is ours
        min_luma=15.0,
        max_luma=240.0,
        max_clipped=0.8,
        min_motion=0.004,  # SVD's purpose (slide shows); the unit and the limit are ours
        max_motion=3.0,
        max_shake=0.012,
        max_text=0.008,  # OS2's and SVD's purpose; the measure and the limit are ours
        images=True,
    )
    config.scores = ConfigDict()  # such as dict(aesthetics=dict(function="my_models.laion:score", least=4.5))
    config.embedder = dict(function="", num_frames=8, accelerators=0.0)
    config.captioner = dict(function="", num_frames=8, accelerators=0.0)
    config.duplicates = dict(max_bits=10, min_similarity=0.94, min_overlap=0.6, min_overlap_s=1.0)
    config.balance = dict(num_clusters=0, quota=3.0)
    config.output = dict(
        short_sides=(0, 256),
        format="array_record",
        records_per_shard=1024,
        heldout_fraction=0.05,
        vocab_size=8192,
        tokenizer="",  # a data set's, for one that is to be mixed with it
        license="unknown",
        require_caption=False,
    )
    return config
