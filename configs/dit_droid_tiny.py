"""A small DiT on real robot clips at 112x64, 13 frames, 10 fps, for two CPU cores.

    sora-jax train --config configs/autoencoder_droid.py --workdir runs/droid/autoencoder \
        --config.start.whiten=False --config.model.latent_channels=32 --config.train.num_steps=20 \
        --config.optim.warmup_steps=5 --config.optim.learning_rate=2e-4
    sora-jax encode --autoencoder runs/droid/autoencoder --data runs/droid/clips \
        --out runs/droid/latents --short_side 64 --fps 10 --max_frames 13 --latent_multiple 2 --latent_scale all
    sora-jax train --config configs/dit_droid_tiny.py --workdir runs/droid/dit
    sora-jax sample --run runs/droid/dit --prompt "Move the green cup forward" --out runs/droid/sample.mp4
    sora-jax evaluate --metric gallery --run runs/droid/dit --real runs/droid/clips --out runs/droid/gallery.json

Meant for an hour on two cores, or minutes on a GPU; LOG.md says what has been run of it. The autoencoder is the linear
start of `autoencoder_droid` and little more, with 32 channels: half of 64's values for the generator to predict. They
are not whitened, so a loss on them is one on pixels: brightness is most of it, and is hidden only by much noise, hence
the shift of 4 (`reference_tokens`). A grid of 7 by 4 tokens is short for rotary frequencies spread down to 1/10,000.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/droid/latents",
        row_tokens=336,
        row_text=64,
        row_segments=4,
        patch_size=(1, 2, 2),
        reference_latent_rate=2.5,
        caption_dropout=0.1,
        known=dict(first=0.12, prefix=0.12, suffix=0.06, ends=0.08, frames=0.06, region=0.08),
    )
    config.model = dict(
        width=192,
        depth=8,
        num_heads=4,
        rope_theta=100.0,
        remat="dots",
        text=dict(width=128, depth=1, num_heads=4, mlp_ratio=2),
    )
    config.flow = dict(reference_tokens=7, prediction="x_0")  # a patch has 128 values of a network 192 wide
    config.optim = dict(
        optimizer="muon", learning_rate=2e-3, schedule="cosine", warmup_steps=50, final_fraction=0.1, ema_decay=0.98
    )
    config.train = dict(
        task="diffusion",
        num_steps=2000,
        batch_rows=6,
        log_every=20,
        eval_every=200,
        eval_batches=2,
        preview_every=400,
        checkpoint_every=200,
    )
    config.preview = dict(
        prompts=("Move the white mug to the middle of the table", "Move the green cup forward"),
        width=112,
        height=64,
        num_frames=13,
        fps=10.0,
        sampling=dict(num_steps=20, guidance=3.0, solver="euler"),
    )
    return config
