"""A generator small enough to plan in a test."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(path="absent", row_tokens=32, row_text=16, row_segments=2, patch_size=(1, 1, 1))
    config.model = dict(
        width=32, depth=2, num_heads=2, modulation="adaln_single", dtype="bfloat16", remat="full",
        attention_kernel="reference", text=dict(width=32, depth=1, num_heads=2, mlp_ratio=2),
    )  # fmt: skip
    config.optim = dict(optimizer="adamw", learning_rate=1e-3, ema_decay=0.99)
    config.train = dict(task="diffusion", num_steps=10, batch_rows=16, mesh=dict(fsdp=8))
    return config
