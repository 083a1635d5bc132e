"""CLIP's files say what is wrong; captions that are too long keep their end."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipeline.errors import UserError
from sora_jax.models.clip_files import load_clip, read_published_clip, save_clip
from sora_jax.models.clip_tokenizer import ClipTokenizer
from tests.sora_jax.models import published_clip as published

pytest.importorskip("tokenizers")


def test_a_folder_becomes_one_file_with_its_tokenizer(tmp_path):
    folder, out = published.write(tmp_path / "published"), tmp_path / "clip.safetensors"
    save_clip(read_published_clip(folder), out)
    weights = load_clip(out)
    assert weights.tokenizer == (folder / "tokenizer.json").read_text() and weights.config.context == 16
    changed = published.tensors()
    changed["text_projection.weight"][0, 0] += 1
    other = read_published_clip(published.write(tmp_path / "other", values=changed))
    assert other.fingerprint != weights.fingerprint


def test_long_captions_are_cut_and_counted(tmp_path):
    weights = read_published_clip(published.write(tmp_path))
    tokens = ClipTokenizer(weights.tokenizer, weights.config)(["Red a", "b" * 40, "", "x " * 14, "x " * 15])
    assert tokens.ids.shape == (5, 16) and tokens.num_truncated == 2
    assert tokens.ends.tolist() == [3, 15, 1, 15, 15]
    red, a = (json.loads(weights.tokenizer)["model"]["vocab"][word] for word in ("red</w>", "a</w>"))
    assert tokens.ids[0].tolist() == [0, red, a] + [1] * 13


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vision_model.post_layernorm.bias", None, r"post_layernorm.bias is missing, config.json says \(32,\)"),
        ("text_projection.weight", np.zeros((20, 23)), r"is of shape \(20, 23\), config.json says \(20, 24\)"),
        ("visual_projection.weight", np.full((20, 32), np.nan), "holds numbers that are not finite"),
        ("text_model.encoder.layers.2.mlp.fc1.bias", np.zeros(40), "hold text_model.encoder.layers.2.* has not"),
    ],
)
def test_wrong_tensors_are_named(tmp_path, name, value, message):
    values = published.tensors()
    if value is None:
        del values[name]
    else:
        values[name] = value.astype(np.float32)
    with pytest.raises(UserError, match=message):
        read_published_clip(published.write(tmp_path, values=values))


def test_wrong_files_say_what_to_get(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"not a folder; for --kind clip name that of https://huggingface.co/openai"):
        read_published_clip(tmp_path / "nowhere")
    folder = published.write(tmp_path / "published")
    weights = read_published_clip(folder)
    (folder / "config.json").write_text(json.dumps(published.describe(model_type="siglip")))
    with pytest.raises(UserError, match="of type 'siglip', not 'clip'"):
        read_published_clip(folder)
    (folder / "config.json").write_text(json.dumps(published.describe(projection_dim="20")))
    with pytest.raises(UserError, match="projection_dim must be whole numbers"):
        read_published_clip(folder)
    (folder / "config.json").write_text(json.dumps(published.describe(text_config=[1])))
    with pytest.raises(UserError, match="text_config and vision_config must be objects"):
        read_published_clip(folder)
    published.write(folder)
    (folder / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        read_published_clip(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds neither model.safetensors nor pytorch_model.bin"):
        read_published_clip(folder)
    out = tmp_path / "clip.safetensors"
    with pytest.raises(UserError, match=r"no file .* with CLIP's weights: get https://.*--kind clip"):
        load_clip(out)
    save_clip(weights, out)
    out.write_bytes(out.read_bytes()[:-8])
    with pytest.raises(UserError, match="no safetensors file of ours"):
        load_clip(out)
    save_file({"x": np.zeros(1)}, out)
    with pytest.raises(UserError, match="holds nothing that convert-weights wrote, not CLIP"):
        load_clip(out)
    with pytest.raises(UserError, match=r"tokenizer.json is damaged"):
        ClipTokenizer("{}", weights.config)
    without = {**json.loads(weights.tokenizer), "post_processor": None}
    with pytest.raises(UserError, match=r"has 56 tokens and puts \[\] around a caption, the network has 60"):
        ClipTokenizer(json.dumps(without), weights.config)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'sora-jax\[clip\]'"):
        ClipTokenizer(weights.tokenizer, weights.config)
