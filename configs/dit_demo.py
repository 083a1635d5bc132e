"""The demo's generator: a 9.6 M parameter DiT on latents of the embedded `demo` world.

    sora-jax train --config configs/dit_demo.py --workdir runs/demo/dit --config.data.path=runs/demo/latents

Meant for an hour and more on two cores, or minutes on a GPU; LOG.md says what has been run of it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/demo/latents",
        row_tokens=160,
        row_text=64,
        row_segments=4,
        patch_size=(1, 2, 2),
        reference_latent_rate=3.0,
        caption_dropout=0.1,
        known=dict(first=0.08, prefix=0.06, suffix=0.04, ends=0.04, frames=0.04, region=0.06),
    )
    config.model = dict(
        width=256, depth=6, num_heads=4, remat="dots", text=dict(width=192, depth=2, num_heads=4, mlp_ratio=2)
    )
    config.flow = dict(reference_tokens=5)
    config.optim = dict(
        optimizer="adamw",
        learning_rate=1.5e-3,
        schedule="cosine",
        warmup_steps=50,
        final_fraction=0.05,
        ema_decay=0.995,
    )
    config.train = dict(
        task="diffusion",
        num_steps=4000,
        batch_rows=16,
        log_every=20,
        eval_every=500,
        eval_batches=4,
        preview_every=500,
        checkpoint_every=200,
    )
    config.preview = dict(
        prompts=(
            "a red circle moves left",
            "a blue square moves up",
            "a green triangle moves right",
            "a yellow circle moves down",
        ),
        width=64,
        height=64,
        num_frames=17,
        fps=12.0,
        sampling=dict(num_steps=25, guidance=4.0, solver="euler"),
    )
    return config
