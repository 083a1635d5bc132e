"""A 4x8x8 autoencoder on real robot clips (DROID, 320x180), 64 channels, for two CPU cores or one GPU.

    sora-jax data build --videos ../shared/data/clips/droid --captions ../shared/data/clips/captions.jsonl \
        --out runs/droid/clips
    sora-jax train --config configs/autoencoder_droid.py --workdir runs/droid/autoencoder

64 channels because 800 clips and an hour of two cores buy little beyond a linear code: of these clips' 4x8x8 blocks 16
principal components keep 25.5 dB, 32 keep 28.1, 64 keep 31.5 and 128 keep 37.7. The run starts as such a code and has
to learn only what is not linear. LOG.md has what it reached on held-out episodes, before crops were drawn at every
scale down to that of small generators (`min_scale`: 180 pixels to 64).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(path="runs/droid/clips", crops=((17, 64, 112),), fps=15.0, min_scale=0.36)
    config.model = dict(
        latent_channels=64,
        patch_size=4,
        stages=(dict(space=1, time=2, width=64, num_blocks=1), dict(space=2, time=2, width=224, num_blocks=2)),
        norm_latents=False,
    )
    config.start = dict(principal_batches=24, whiten=True)
    config.loss = dict(kl_weight=1e-6, squared_weight=20.0, lpips_weight=0.0, lpips_net="squeeze", lpips_weights="")
    config.gan = dict(weight=0.0, start_step=500, r1_weight=0.0, learning_rate=2e-4, widths=(32, 64, 128))
    config.optim = dict(
        optimizer="adamw", learning_rate=5e-4, schedule="cosine", warmup_steps=50, final_fraction=0.05, ema_decay=0.98
    )
    config.train = dict(
        task="autoencoder",
        num_steps=3000,
        batch_rows=2,
        log_every=10,
        eval_every=500,
        eval_batches=8,
        preview_every=500,
        checkpoint_every=100,
    )
    return config
