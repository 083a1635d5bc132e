"""A 4x8x8 autoencoder of 51 M parameters with 16 channels, in three stages, for one node of 8 GPUs or a v5e:2x4 slice.

    for stage in images clips finish; do   # each starts from the one before
      sora-jax train --config configs/autoencoder_production.py:$stage --workdir runs/autoencoder/$stage \
          --config.data.path=CLIPS --config.loss.lpips_weight=1 --config.loss.lpips_weights=WEIGHTS
    done

The schedule follows what is published of open video autoencoders of this compression (Open-Sora Plan's WF-VAE, Wan 2.1,
CogVideoX): single frames first, where a step costs least, then short clips together with frames, and last longer clips
with the discriminator on. CLIPS is a folder of clip shards whose short side is 256 or more; WEIGHTS holds LPIPS's files
(docs/autoencoder.md). The batch is the global one on any mesh: on fewer devices raise `train.microbatches`.
None of it has been trained yet; two stages were compiled for a v5e:2x4 slice: 2.6 and 12.4 GiB of temporaries a chip.
"""

from ml_collections import ConfigDict

STAGES = {
    # crops (frames, height, width) and their shares, rows, steps, peak learning rate, weight of the discriminator
    "images": dict(crops=((1, 256, 256),), weights=(1.0,), rows=64, steps=100_000, learning_rate=1e-4, gan_weight=0.0),
    "clips": dict(
        crops=((17, 256, 256), (17, 192, 336), (17, 336, 192), (1, 512, 512)),
        weights=(0.4, 0.2, 0.2, 0.2),
        rows=16,
        steps=200_000,
        learning_rate=5e-5,
        gan_weight=0.0,
    ),
    "finish": dict(
        crops=((33, 256, 256), (33, 192, 336), (33, 336, 192), (1, 512, 512)),
        weights=(0.4, 0.2, 0.2, 0.2),
        rows=8,
        steps=100_000,
        learning_rate=1e-5,
        gan_weight=0.5,
    ),
}


def get_config(stage: str = "images") -> ConfigDict:
    if stage not in STAGES:
        raise ValueError(f"the stage '{stage}' is none of {', '.join(STAGES)}")
    chosen, before = STAGES[stage], {"clips": "images", "finish": "clips"}.get(stage)
    config = ConfigDict()
    config.data = dict(path="runs/production/clips", crops=chosen["crops"], weights=chosen["weights"], min_scale=0.5)
    config.model = dict(
        latent_channels=16,
        patch_size=2,
        stages=(
            dict(space=1, time=1, width=128, num_blocks=2),
            dict(space=2, time=1, width=256, num_blocks=2),
            dict(space=2, time=2, width=512, num_blocks=3),
            dict(space=1, time=2, width=512, num_blocks=4),
        ),
        dtype="bfloat16",
    )
    config.loss = dict(kl_weight=1e-6, squared_weight=0.0, lpips_weight=0.0, lpips_net="vgg", lpips_weights="")
    config.gan = dict(
        weight=chosen["gan_weight"], start_step=2000, r1_weight=0.0, learning_rate=1e-5, widths=(64, 128, 256, 512)
    )
    config.optim = dict(
        optimizer="adamw",
        learning_rate=chosen["learning_rate"],
        schedule="cosine",
        warmup_steps=1000,
        final_fraction=0.1,
        b1=0.9,
        b2=0.99,
        weight_decay=1e-4,
        ema_decay=0.9995,
    )
    config.train = dict(
        task="autoencoder",
        num_steps=chosen["steps"],
        batch_rows=chosen["rows"],
        mesh=dict(fsdp=8),
        log_every=50,
        eval_every=2000,
        eval_batches=16,
        preview_every=5000,
        checkpoint_every=1000,
        keep_last=3,
        keep_best="psnr:max",
        spike_sigma=6.0,
        num_workers=8,
        init_from=f"runs/autoencoder/{before}" if before else "",
    )
    return config
