"""Small random CLIPs in the files and under the names of published ones, with a tokenizer of letters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
TEXT |= {"vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
VISION |= {"image_size": 24, "patch_size": 8}


def describe(**changes: Any) -> dict[str, Any]:
    """A `config.json`."""
    return {"model_type": "clip", "text_config": TEXT, "vision_config": VISION, "projection_dim": 20, **changes}


def tensors(seed: int = 4) -> dict[str, np.ndarray]:
    """Random float32 tensors of the network of `describe`, and two that are not needed."""
    text, vision, patches = TEXT["hidden_size"], VISION["hidden_size"], (24 // 8) ** 2
    shapes = {
        "text_model.embeddings.token_embedding.weight": (TEXT["vocab_size"], text),
        "text_model.embeddings.position_embedding.weight": (TEXT["max_position_embeddings"], text),
        "vision_model.embeddings.class_embedding": (vision,),
        "vision_model.embeddings.patch_embedding.weight": (vision, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (patches + 1, vision),
        "text_projection.weight": (20, text),
        "visual_projection.weight": (20, vision),
        "logit_scale": (),
        "text_model.embeddings.position_ids": (1, 16),
    }
    norms = [("text_model.final_layer_norm", text)]
    norms += [(f"vision_model.{name}", vision) for name in ("pre_layrnorm", "post_layernorm")]
    for tower, sizes in (("text_model", TEXT), ("vision_model", VISION)):
        width, mlp = sizes["hidden_size"], sizes["intermediate_size"]
        for i in range(sizes["num_hidden_layers"]):
            layer = f"{tower}.encoder.layers.{i}"
            for name, out, width_in in [
                *((f"self_attn.{n}_proj", width, width) for n in ("q", "k", "v", "out")),
                *(("mlp.fc1", mlp, width), ("mlp.fc2", width, mlp)),
            ]:
                shapes |= {f"{layer}.{name}.weight": (out, width_in), f"{layer}.{name}.bias": (out,)}
            norms += [(f"{layer}.layer_norm{n}", width) for n in (1, 2)]
    shapes |= {f"{name}.{part}": (width,) for name, width in norms for part in ("weight", "bias")}
    rng = np.random.default_rng(seed)
    return {
        # Large biases would be nearly all that a vector says.
        name: np.asarray((0.05 if name.endswith("bias") else 0.5) * rng.standard_normal(shape), np.float32)
        for name, shape in shapes.items()
    }


def write_tokenizer(path: Path) -> Path:
    """Byte pairs over letters, in the manner of CLIP's own file."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    vocab = {word: i for i, word in enumerate(words)}
    merges = [("r", "e"), ("re", "d</w>")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]+"), "removed", invert=True)
    tokenizer.add_special_tokens(words[:2])
    tokenizer.post_processor = processors.RobertaProcessing((words[1], 1), (words[0], 0), add_prefix_space=False)
    path.write_text(tokenizer.to_str())
    return path


def write(folder: Path, config: dict[str, Any] | None = None, values: dict[str, np.ndarray] | None = None) -> Path:
    """`config.json`, `model.safetensors` and `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or describe()))
    save_file(values or tensors(), folder / "model.safetensors")
    write_tokenizer(folder / "tokenizer.json")
    return folder
