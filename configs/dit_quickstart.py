"""The quickstart's generator: a 5 M parameter DiT on latents of the embedded `quickstart` world.

    sora-jax train --config configs/dit_quickstart.py --workdir runs/quickstart/dit \
        --config.data.path=runs/quickstart/latents

Any caption of a clip is as good as another; `configs/dit_quickstart.py:SOURCE` trains on those of one source, such as
"synthetic short" or, after `sora-jax recaption`, "captioner" (docs/captioning.md).
"""

from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/quickstart/latents",
        row_tokens=96,
        row_text=64,
        row_segments=4,
        patch_size=(1, 1, 1),
        reference_latent_rate=2.0,
        caption_dropout=0.1,
        known=dict(first=0.04, prefix=0.04, suffix=0.04, ends=0.03, frames=0.02, region=0.03),
    )
    if source:
        config.data.caption_weights = {source: 1.0}
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
        optimizer="adamw", learning_rate=1.5e-3, schedule="cosine", warmup_steps=50, final_fraction=0.1, ema_decay=0.99
    )
    config.train = dict(
        task="diffusion",
        num_steps=600,
        batch_rows=32,
        log_every=20,
        eval_every=250,
        eval_batches=2,
        preview_every=250,
        checkpoint_every=100,
        num_workers=0,
    )
    config.preview = dict(
        prompts=(
            "a red circle moves left",
            "a blue square moves up",
            "a green triangle moves right",
            "a yellow circle moves down",
        ),
        width=32,
        height=32,
        num_frames=9,
        fps=8.0,
        sampling=dict(num_steps=20, guidance=3.0, solver="euler"),
    )
    return config
