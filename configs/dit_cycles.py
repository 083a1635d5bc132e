"""A small generator of a world whose motions come back, for loops without a jump; with the quickstart's autoencoder.

    sora-jax data synth --world cycles --clips 6000 --out runs/cycles/videos
    sora-jax data build --videos runs/cycles/videos --captions runs/cycles/videos/captions.jsonl --out runs/cycles/clips
    sora-jax encode --autoencoder runs/quickstart/autoencoder --data runs/cycles/clips --out runs/cycles/latents
    sora-jax train --config configs/dit_cycles.py --workdir runs/cycles/dit
    sora-jax evaluate --metric modes --run runs/cycles/dit --real runs/cycles/clips --num_real 120 \
        --guidance 1.5 --out runs/cycles/modes.json

A fifth of the samples know both ends, as a loop does. LOG.md says what it reached.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/cycles/latents",
        row_tokens=96,
        row_text=64,
        row_segments=4,
        patch_size=(1, 1, 1),
        reference_latent_rate=2.0,
        caption_dropout=0.1,
        known=dict(first=0.06, prefix=0.08, suffix=0.06, ends=0.2, frames=0.05, region=0.05),
    )
    config.model = dict(
        width=192,
        depth=6,
        num_heads=4,
        dtype="float32",
        matmul="full",
        remat="dots",
        text=dict(width=128, depth=1, num_heads=4, mlp_ratio=2),
    )
    config.flow = dict(reference_tokens=48)
    config.optim = dict(
        optimizer="muon", learning_rate=2e-3, schedule="cosine", warmup_steps=50, final_fraction=0.1, ema_decay=0.99
    )
    config.train = dict(
        task="diffusion",
        num_steps=1200,
        batch_rows=32,
        log_every=20,
        eval_every=200,
        eval_batches=2,
        preview_every=500,
        checkpoint_every=100,
        num_workers=0,
    )
    config.preview = dict(
        prompts=(
            "a red circle goes round clockwise",
            "a blue square goes round anticlockwise",
            "a green triangle swings left and right",
            "a yellow circle swings up and down",
        ),
        width=32,
        height=32,
        num_frames=21,
        fps=8.0,
        sampling=dict(num_steps=20, guidance=3.0, solver="unipc"),
    )
    return config
