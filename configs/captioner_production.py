"""A captioner of 216 M parameters, short captions first, then long descriptive ones, for one node of 8 GPUs or a
v5e:2x4 slice.

    sora-jax train --config configs/captioner_production.py --workdir runs/captioner --config.data.path=CLIPS

CLIPS is a folder of clip shards with captions whose sources are named below: "alt" is the short text that came with a
clip, "human" a description written for it. DALL·E 3's captioner (Betker et al. 2023) was trained first on a small set
of short captions of the main subject, then of long, highly descriptive ones. The encoder is as wide and deep as that of
CoCa-Base (Yu et al. 2022), the decoder half as deep; the parameters are counted with a vocabulary of 32,000 pieces. The
contrastive loss is over the global batch of 256 clips, with `train.microbatches` over a microbatch. None of it has been
trained yet.
"""

from ml_collections import ConfigDict

SHORT_STEPS = 60_000


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        path="runs/production/clips",
        canvas=(16, 224, 224),
        max_tokens=256,
        stages=(
            dict(start=0, caption_weights={"alt": 0.8, "human": 0.2}),
            dict(start=SHORT_STEPS, caption_weights={"alt": 0.05, "human": 0.95}),
        ),
        cache_bytes=0,
    )
    config.model = dict(
        patch=(2, 16, 16),
        width=768,
        depth=12,
        num_heads=12,
        num_memory=256,
        text_width=768,
        text_depth=12,
        cross_depth=6,
        text_heads=12,
        vector_width=512,
        dtype="bfloat16",
        remat="full",
    )
    config.loss = dict(caption_weight=2.0, contrastive_weight=1.0)
    config.optim = dict(
        optimizer="adamw",
        learning_rate=4e-4,
        schedule="cosine",
        warmup_steps=2000,
        final_fraction=0.05,
        b1=0.9,
        b2=0.98,
        weight_decay=0.05,
        ema_decay=0.9998,
    )
    config.train = dict(
        task="captioner",
        num_steps=100_000,
        batch_rows=256,
        mesh=dict(fsdp=8),
        log_every=50,
        eval_every=2000,
        eval_batches=16,
        preview_every=5000,
        checkpoint_every=1000,
        keep_last=3,
        keep_best="loss:min",
        spike_sigma=6.0,
        num_workers=8,
    )
    return config
