"""The captioner of the embedded `demo` world, of one or two objects: short captions first, then long ones.

    sora-jax train --config configs/captioner_demo.py --workdir runs/demo/captioner --config.data.path=runs/demo/clips

Clips are shrunk to 40 pixels, where objects are 9 to 14 of them large and patches of 8 behind a stem of two
convolutions see as much of them as the quickstart's captioner does. After 2,600 steps (LOG.md) colours and numbers
are right in 99 to 100 of 100, directions in 79 and shapes in 76, still rising.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/demo/clips",
        canvas=(9, 40, 40),
        max_tokens=64,
        stages=(
            dict(start=0, caption_weights={"synthetic short": 1.0}),
            dict(start=300, caption_weights={"synthetic long": 1.0}),
        ),
    )
    config.model = dict(
        patch=(3, 8, 8),
        stem=(32, 64),
        width=128,
        depth=3,
        num_heads=4,
        num_memory=16,
        text_width=128,
        text_depth=4,
        cross_depth=2,
        text_heads=4,
        vector_width=64,
    )
    config.loss = dict(caption_weight=2.0, contrastive_weight=1.0)
    config.optim = dict(
        optimizer="adamw", learning_rate=2e-3, schedule="cosine", warmup_steps=50, final_fraction=0.02, ema_decay=0.99
    )
    config.train = dict(
        task="captioner",
        num_steps=2600,
        batch_rows=32,
        log_every=20,
        eval_every=300,
        eval_batches=8,
        preview_every=600,
        checkpoint_every=200,
        num_workers=0,
    )
    return config
