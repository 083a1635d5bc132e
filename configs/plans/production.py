"""What `make plans` compiles: the production configs on their hardware, small ones first; a minute of 1080p last."""

PLANS = (
    dict(config="configs/dit_xl.py:v5e:2x4", topology="v5e:2x4"),
    dict(config="configs/dit_xl.py:h100:1x8", topology="h100:1x8"),
    dict(config="configs/dit_2b.py:v5e:4x4", topology="v5e:4x4"),
    dict(config="configs/dit_2b.py:h100:2x8", topology="h100:2x8"),
    dict(config="configs/dit_7b.py:v5p:4x4x4", topology="v5p:4x4x4"),
    dict(config="configs/dit_7b.py:v6e:16x16", topology="v6e:16x16"),
    dict(config="configs/dit_7b.py:v5p:16x16x16", topology="v5p:16x16x16"),
    dict(config="configs/dit_7b.py:h100:8x8", topology="h100:8x8"),
    dict(config="configs/dit_30b.py:v5p:8x8x8", topology="v5p:8x8x8"),
    dict(config="configs/dit_30b.py:v5p:8x8x8x2", topology="v5p:8x8x8", slices=2),
    dict(config="configs/dit_30b.py:h200:32x8", topology="h200:32x8"),
    dict(
        config="configs/dit_7b.py",
        topology="v5p:8x8x8",
        sample=dict(
            size="1920x1080", seconds=60, fps=24, steps=50, autoencoder="configs/autoencoder_production.py", tile=512
        ),
    ),
)
