"""The encoders beside those of the `transformers` library, from files that it has written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sora_jax.models.t5 import buckets, t5_definition
from sora_jax.models.t5_files import load_t5

pytestmark = [
    pytest.mark.transformers,
    # torch, transformers and what they import warn about each other's releases
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

SIZES = dict(vocab_size=120, d_model=32, num_layers=3, num_heads=4, d_kv=12, d_ff=40, dropout_rate=0.0)


@pytest.mark.parametrize(
    ("kind", "projection", "shard"),
    [
        ("T5", "relu", "5GB"),
        ("T5", "gated-gelu", "5GB"),
        ("UMT5", "gated-gelu", "20KB"),
    ],
)
def test_features_equal_those_of_transformers_packed_or_not(tmp_path, kind, projection, shard):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(feed_forward_proj=projection, **SIZES)
    model = getattr(transformers, f"{kind}EncoderModel")(config).eval()
    with torch.no_grad():  # a fresh model's biases are nearly the same everywhere: every test would pass
        for name, value in model.named_parameters():
            if "relative_attention_bias" in name or "layer_norm" in name:
                value.add_(torch.randn_like(value))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard == "20KB"
    loaded = load_t5(tmp_path, "float32")
    lengths = (1, 300, 17)  # 300: farther than the last bucket begins
    captions = [np.random.default_rng(n).integers(1, 120, n) for n in lengths]
    ids = jnp.asarray(np.concatenate(captions))[None]
    segments = jnp.asarray(np.repeat([1, 2, 3], lengths))[None]
    positions = jnp.asarray(np.concatenate([np.arange(n) for n in lengths]))[None]
    encode = jax.jit(lambda params, *text: nnx.merge(t5_definition(loaded.config), params)(*text))
    packed = np.asarray(encode(loaded.params, ids, segments, positions))[0]
    with torch.no_grad():
        theirs = [model(torch.as_tensor(c[None])).last_hidden_state[0].numpy() for c in captions]
    np.testing.assert_allclose(packed, np.concatenate(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("num_buckets", "farthest"), [(32, 128), (64, 256), (8, 12)])
def test_buckets_equal_those_of_transformers(num_buckets, farthest):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.T5Config(**SIZES)
    attention = transformers.T5EncoderModel(config).encoder.block[0].layer[0].SelfAttention
    distances = torch.arange(-farthest, farthest + 1)
    theirs = attention._relative_position_bucket(distances, num_buckets=num_buckets, max_distance=farthest)
    np.testing.assert_array_equal(buckets(num_buckets, farthest), theirs.numpy())
