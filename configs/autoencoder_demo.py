"""The demo's autoencoder: 4x8x8, 16 channels, on the embedded `demo` world (64x64 and wide and tall, 17 frames).

    sora-jax train --config configs/autoencoder_demo.py --workdir runs/demo/autoencoder \
        --config.data.path=runs/demo/clips

Aims for 28 dB and more on held-out clips; LOG.md has what it reached.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/demo/clips",
        crops=((9, 64, 64), (9, 48, 80), (9, 80, 48), (1, 64, 64)),
        weights=(0.5, 0.2, 0.2, 0.1),
    )
    config.model = dict(
        latent_channels=16,
        patch_size=4,
        stages=(dict(space=1, time=2, width=64, num_blocks=1), dict(space=2, time=2, width=160, num_blocks=2)),
    )
    config.loss = dict(kl_weight=1e-5, squared_weight=2.0)
    config.optim = dict(
        optimizer="adamw", learning_rate=3e-3, schedule="cosine", warmup_steps=50, final_fraction=0.02, ema_decay=0.99
    )
    config.train = dict(
        task="autoencoder",
        num_steps=2000,
        batch_rows=8,
        log_every=20,
        eval_every=500,
        eval_batches=8,
        preview_every=500,
        checkpoint_every=200,
    )
    return config
