"""The 30 B generator on captions read by a frozen T5 v1.1 XXL.

    sora-jax plan --config configs/dit_30b.py:v5p:8x8x8 --topology v5p:8x8x8
    sora-jax train --config configs/dit_30b.py:v5p:8x8x8 --workdir runs/dit_30b --config.data.path=LATENTS

Rows, accumulation and mesh belong to the hardware that is named after the colon; docs/plan.md holds the plans.
"""

from ml_collections import ConfigDict

TARGETS = {
    "v5p:8x8x8": (65_536, 256, 1, dict(fsdp=256, context=2)),
    "v5p:8x8x8x2": (65_536, 512, 1, dict(replica=2, fsdp=256, context=2)),
    "h200:32x8": (65_536, 256, 1, dict(fsdp=256)),
}
"""Hardware -> tokens in a row, rows in a step, microbatches, mesh. Another one starts from the nearest of these."""


def get_config(target: str = "v5p:8x8x8") -> ConfigDict:
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
    config.model = dict(size="30B", matmul="full", text_encoder=dict(path="t5-v1_1-xxl"))
    config.flow = dict(reference_tokens=1024)
    config.optim = dict(
        optimizer="adamw",
        learning_rate=6e-5,
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
