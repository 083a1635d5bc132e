"""Small random encoders in the files and under the names of published ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SIZES = dict(vocab_size=400, d_model=16, num_layers=2, num_heads=4, d_kv=6, d_ff=24)


def describe(model_type: str = "t5", **changes: Any) -> dict[str, Any]:
    """A `config.json`."""
    projection = "relu" if model_type == "t5" else "gated-gelu"
    sizes = {**SIZES, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    return {"model_type": model_type, "feed_forward_proj": projection, **sizes, **changes}


def tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors of the encoder that `config` describes, and one of a decoder."""
    heads, width, mlp = config["num_heads"] * config["d_kv"], config["d_model"], config["d_ff"]
    shapes = {"shared": (config["vocab_size"], width), "encoder.final_layer_norm": (width,), "decoder.x": (1,)}
    inputs = ("wi",) if config["feed_forward_proj"] == "relu" else ("wi_0", "wi_1")
    for i in range(config["num_layers"]):
        attention, mlp_layer = (f"encoder.block.{i}.layer.{j}" for j in range(2))
        shapes |= {f"{attention}.SelfAttention.{n}": (heads, width) for n in "qkv"}
        shapes |= {f"{attention}.SelfAttention.o": (width, heads)}
        shapes |= {f"{layer}.layer_norm": (width,) for layer in (attention, mlp_layer)}
        shapes |= {f"{mlp_layer}.DenseReluDense.{n}": (mlp, width) for n in inputs}
        shapes |= {f"{mlp_layer}.DenseReluDense.wo": (width, mlp)}
        if i == 0 or config["model_type"] == "umt5":
            buckets = config["relative_attention_num_buckets"]
            shapes[f"{attention}.SelfAttention.relative_attention_bias"] = (buckets, config["num_heads"])
    rng = np.random.default_rng(seed)
    return {f"{name}.weight": 0.5 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(folder: Path, config: dict[str, Any], values: dict[str, np.ndarray], num_files: int = 1) -> Path:
    """`config.json` and the tensors in one file, or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if num_files == 1:
        save_file(values, folder / "model.safetensors")
        return folder
    names, index = list(values), {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        mine = names[number::num_files]
        save_file({name: values[name] for name in mine}, folder / file)
        index |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder
