"""A small 4x8x8 autoencoder on real robot clips (DROID, 320x180), for two CPU cores.

    sora-jax data build --videos ../shared/data/clips/droid --captions ../shared/data/clips/captions.jsonl \
        --out runs/droid_tiny/clips
    sora-jax train --config configs/autoencoder_droid_tiny.py --workdir runs/droid_tiny/autoencoder

LOG.md has how long it took and the PSNR that it reached on held-out episodes.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/droid_tiny/clips",
        crops=((9, 64, 112), (9, 64, 64), (1, 128, 128)),
        weights=(0.5, 0.25, 0.25),
        fps=10.0,
    )
    config.model = dict(
        latent_channels=16,
        patch_size=4,
        stages=(dict(space=1, time=2, width=64, num_blocks=1), dict(space=2, time=2, width=160, num_blocks=2)),
    )
    config.loss = dict(kl_weight=1e-5, squared_weight=2.0, lpips_weight=0.0, lpips_net="squeeze", lpips_weights="")
    config.gan = dict(weight=0.0, start_step=500, r1_weight=0.0, learning_rate=2e-4, widths=(32, 64, 128))
    config.optim = dict(
        optimizer="adamw", learning_rate=2e-3, schedule="cosine", warmup_steps=50, final_fraction=0.02, ema_decay=0.99
    )
    config.train = dict(
        task="autoencoder",
        num_steps=1000,
        batch_rows=4,
        log_every=20,
        eval_every=500,
        eval_batches=8,
        preview_every=500,
        checkpoint_every=200,
    )
    return config
