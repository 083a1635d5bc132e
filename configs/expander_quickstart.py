"""The quickstart's expander of prompts: a 0.7 M parameter language model, from short captions to long ones.

    sora-jax train --config configs/expander_quickstart.py --workdir runs/quickstart/expander \
        --config.data.path=runs/quickstart/clips
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/quickstart/clips",
        short_source="synthetic short",
        long_source="synthetic long",
        short_tokens=12,
        long_tokens=30,
        swap_rate=0.75,
        leave_out=(),
    )
    config.model = dict(width=128, depth=3, num_heads=4)
    config.optim = dict(
        optimizer="adamw", learning_rate=2e-3, schedule="cosine", warmup_steps=30, final_fraction=0.05, ema_decay=0.98
    )
    config.train = dict(
        task="expander",
        num_steps=300,
        batch_rows=32,
        log_every=20,
        eval_every=100,
        eval_batches=4,
        preview_every=100,
        checkpoint_every=100,
        num_workers=0,
    )
    return config
