"""The 7 B generator on captions read by a frozen T5 v1.1 XXL.

    sora-jax plan --config configs/dit_7b.py:v5p:4x4x4 --topology v5p:4x4x4
    sora-jax train --config configs/dit_7b.py:v5p:4x4x4 --workdir runs/dit_7b --config.data.path=LATENTS

Rows, accumulation and mesh belong to the hardware that is named after the colon; docs/plan.md holds the plans.
"""

from ml_collections import ConfigDict

TARGETS = {
    "v5p:4x4x4": (65_536, 64, 1, dict(fsdp=64)),
    "v6e:16x16": (32_768, 256, 1, dict(fsdp=256)),
    "v5p:16x16x16": (65_536, 4096, 1, dict(data=8, fsdp=512)),
    "h100:8x8": (32_768, 128, 2, dict(fsdp=64)),
}
"""Hardware -> tokens in a row, rows in a step, microbatches, mesh. Another one starts from the nearest of these."""


def get_config(target: str = "v5p:4x4x4") -> ConfigDict:
    row_tokens, batch_rows, microbatches, mesh = TARGETS[target]
    config = ConfigDict()
    config.data = dict(
        path="runs/latents",
        row_tokens=row_tokens,
        row_text=row_tokens // 32,
        row_segments=32,
        patch_size=(1, 2, 2),
        reference_latent_rate=6.0,
        durations="drawn",
        image_fraction=0.1,
        # After `sora-jax recaption`: caption_weights=dict(captioner=0.95, human=0.05), as DALL·E 3 found best
        caption_dropout=0.1,
        known=dict(first=0.08, prefix=0.06, suffix=0.04, ends=0.04, frames=0.04, region=0.06),
    )
    config.model = dict(size="7B", matmul="full", text_encoder=dict(path="t5-v1_1-xxl"))
    config.flow = dict(reference_tokens=1024)
    config.optim = dict(
        optimizer="adamw",
        learning_rate=1e-4,
        schedule="cosine",
        warmup_steps=2000,
        final_fraction=0.1,
        b2=0.95,
        weight_decay=0.01,
        ema_decay=0.9999,
    )
    config.train = dict(
        task="diffusion",
        num_steps=300_000,
        batch_rows=batch_rows,
        microbatches=microbatches,
        mesh=mesh,
        log_every=20,
        eval_every=1000,
        checkpoint_every=500,
        keep_every=10_000,
        spike_sigma=8.0,
        hang_timeout_s=300.0,
        num_workers=4,
    )
    return config
