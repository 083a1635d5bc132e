"""The quickstart's autoencoder: 4x8x8, 16 channels, on the embedded `quickstart` world.

    sora-jax train --config configs/autoencoder_quickstart.py --workdir runs/quickstart/autoencoder \
        --config.data.path=runs/quickstart/clips
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/quickstart/clips",
        crops=((9, 32, 32), (9, 24, 40), (9, 40, 24), (1, 32, 32)),
        weights=(0.6, 0.15, 0.15, 0.1),
    )
    config.model = dict(
        latent_channels=16,
        patch_size=4,
        stages=(
            dict(space=1, time=2, width=64, num_blocks=1),
            dict(space=2, time=2, width=128, num_blocks=2),
        ),
    )
    config.loss = dict(kl_weight=1e-4, squared_weight=2.0)
    config.optim = dict(
        optimizer="adamw", learning_rate=4e-3, schedule="cosine", warmup_steps=50, final_fraction=0.02, ema_decay=0.99
    )
    config.train = dict(
        task="autoencoder",
        num_steps=1500,
        batch_rows=16,
        log_every=20,
        eval_every=500,
        eval_batches=8,
        preview_every=500,
        checkpoint_every=200,
        num_workers=0,
    )
    return config
