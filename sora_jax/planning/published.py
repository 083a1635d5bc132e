"""Sizes of published text encoders, for plans on machines that do not have them: the facts of their `config.json`."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_V1_1 = dict(model_type="t5", feed_forward_proj="gated-gelu", vocab_size=32_128, num_layers=24, d_kv=64)

PUBLISHED: dict[str, dict[str, Any]] = {
    "t5-v1_1-large": dict(**_V1_1, d_model=1024, d_ff=2816, num_heads=16),
    "t5-v1_1-xl": dict(**_V1_1, d_model=2048, d_ff=5120, num_heads=32),
    "t5-v1_1-xxl": dict(**_V1_1, d_model=4096, d_ff=10_240, num_heads=64),
    "umt5-xxl": {
        **_V1_1,
        "model_type": "umt5",
        "vocab_size": 256_384,
        "d_model": 4096,
        "d_ff": 10_240,
        "num_heads": 64,
    },
}
"""The last part of `config.model.text_encoder.path` → what stands in that folder's `config.json`."""


@contextmanager
def with_published_encoder(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`config.model` whose text encoder's folder exists: its own, or a temporary one with a published `config.json`."""
    source = dict(model.get("text_encoder") or {})
    name = Path(source.get("path", "")).name
    if name not in PUBLISHED or Path(source["path"]).exists():
        yield dict(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(PUBLISHED[name]), encoding="utf-8")
        yield {**model, "text_encoder": {**source, "path": folder}}
