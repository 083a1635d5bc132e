"""CLIP beside the `transformers` library's, from files that it has written, and its own way to prepare pictures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.evaluation.clip_score import fit
from sora_jax.models.clip import DEVIATION, MEAN, picture_vectors, text_vectors
from sora_jax.models.clip_files import (
    NOT_OURS,
    clip_params,
    expected_names,
    load_clip,
    read_clip_config,
    read_published_clip,
    save_clip,
)
from sora_jax.models.clip_tokenizer import ClipTokenizer
from tests.sora_jax.models import published_clip as published

pytestmark = [
    pytest.mark.transformers,
    # torch, transformers and what they import warn about each other's releases
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.mark.parametrize(("activation", "pickled"), [("quick_gelu", False), ("gelu", True)])
def test_vectors_equal_those_of_transformers(tmp_path, activation, pickled):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sides = ({**sizes, "hidden_act": activation} for sizes in (published.TEXT, published.VISION))
    config = transformers.CLIPConfig(
        **dict(zip(("text_config", "vision_config"), sides, strict=True)), projection_dim=20
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # fresh biases are zero and fresh norms are one
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    model.save_pretrained(tmp_path)
    if pickled:
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    tokenizer = published.write_tokenizer(tmp_path / "tokenizer.json").read_text()
    save_clip(read_published_clip(tmp_path), tmp_path / "clip.safetensors")
    weights = load_clip(tmp_path / "clip.safetensors")
    params, cfg = clip_params(weights), weights.config
    assert cfg.text.activation == activation and cfg.vision.depth == 3

    tokens = ClipTokenizer(tokenizer, cfg)(["a red circle", "", "a very long caption of a blue square"])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)
    texts = jax.jit(lambda p, *x: text_vectors(cfg, p, *x))(params["text"], tokens.ids, tokens.ends)
    pictures = jax.jit(lambda p, x: picture_vectors(cfg, p, x))(params["vision"], jnp.asarray(pixels))
    normalised = (pixels / 255 - np.array(MEAN)) / np.array(DEVIATION)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.as_tensor(tokens.ids).long(),
            pixel_values=torch.as_tensor(np.moveaxis(normalised, -1, 1)).float(),
        )
    assert np.abs(np.diff(theirs.text_embeds.numpy(), axis=0)).max() > 0.1
    np.testing.assert_allclose(texts, theirs.text_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(pictures, theirs.image_embeds.numpy(), atol=1e-4)


def test_the_published_sizes_have_the_tensors_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    large = {"projection_dim": 768, "text_config": {"hidden_size": 768, "num_attention_heads": 12}}
    large["text_config"]["intermediate_size"] = 3072
    large["vision_config"] = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}
    large["vision_config"] |= {"intermediate_size": 4096, "patch_size": 14}
    for values, millions in (({}, 151.3), ({"vision_config": {"patch_size": 16}}, 149.6), (large, 427.6)):
        with torch.device("meta"):
            model = transformers.CLIPModel(transformers.CLIPConfig(**values))
        theirs = {n: tuple(v.shape) for n, v in model.state_dict().items() if not NOT_OURS.fullmatch(n)}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", **values}))
        ours = expected_names(read_clip_config(tmp_path / "config.json"))
        assert {name: shape for name, (_, _, shape) in ours.items()} == theirs
        assert sum(np.prod(shape) for shape in theirs.values()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_pictures_are_prepared_as_by_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    assert transformers
    for height, width in ((48, 100), (33, 20), (24, 24), (17, 18)):
        frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.uint8)
        processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
        theirs = np.stack(processor(list(frames), return_tensors="np")["pixel_values"])
        ours = (fit(frames, 24) / 255 - np.array(MEAN)) / np.array(DEVIATION)
        np.testing.assert_allclose(ours, np.moveaxis(theirs, 1, -1), atol=1e-5)
