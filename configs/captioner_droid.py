"""A small captioner of real robot clips (DROID, 320x180): which instruction is being followed, for two CPU cores.

    sora-jax data build --videos ../shared/data/clips/droid --captions ../shared/data/clips/captions.jsonl \
        --out runs/droid/clips
    sora-jax train --config configs/captioner_droid.py --workdir runs/droid/captioner

The only captions are people's instructions, one a clip and most of them unlike any other, on 800 clips: enough to see
that the path works on real video, too few for words to be grounded. LOG.md has ten of its captions, read.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(path="runs/droid/clips", canvas=(8, 96, 160), max_tokens=48)
    config.model = dict(
        patch=(2, 16, 16),
        stem=(16, 32, 64),
        width=128,
        depth=3,
        num_heads=4,
        num_memory=32,
        text_width=128,
        text_depth=4,
        cross_depth=2,
        text_heads=4,
        vector_width=64,
    )
    config.loss = dict(caption_weight=2.0, contrastive_weight=1.0)
    config.optim = dict(
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=50,
        final_fraction=0.02,
        weight_decay=0.05,
        ema_decay=0.99,
    )
    config.train = dict(
        task="captioner",
        num_steps=600,
        batch_rows=16,
        log_every=20,
        eval_every=100,
        eval_batches=2,
        preview_every=300,
        checkpoint_every=100,
        num_workers=0,
        keep_best="loss:min",
    )
    return config
