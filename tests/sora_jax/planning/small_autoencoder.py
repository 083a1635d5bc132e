"""An autoencoder small enough to plan in a test."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(path="absent", crops=((1, 16, 16), (5, 16, 16)), weights=(0.5, 0.5))
    stages = (dict(space=1, time=2, width=8, num_blocks=1), dict(space=2, time=2, width=8, num_blocks=1))
    config.model = dict(latent_channels=4, patch_size=4, stages=stages)
    config.loss = dict(lpips_weight=1.0, lpips_weights="absent")
    config.optim = dict(optimizer="adamw", learning_rate=1e-3)
    config.train = dict(task="autoencoder", num_steps=10_000, batch_rows=2, mesh=dict(fsdp=2))
    return config
