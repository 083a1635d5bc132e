"""Published T5 and umT5 encoders from a local folder: `config.json`, safetensors, and the tokenizer beside them.

The tensors are read by name from `model.safetensors`, or from the files that `model.safetensors.index.json` lists.
Decoders and output heads are left out. Nothing is ever unpickled.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from data_pipeline.errors import UserError
from sora_jax.models.layers import initialise
from sora_jax.models.t5 import T5Config, T5Encoder

WEIGHTS, INDEX, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "spiece.model"
MODEL_TYPES = ("t5", "mt5", "umt5")
PROJECTIONS = {"relu": False, "gated-gelu": True}
"""config.json's `feed_forward_proj` → whether the MLP is gated."""
NOT_OURS = ("decoder.", "lm_head.")
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
"""Two names of one tensor: files hold either, or both."""
SHOWN = 3
"""So many names stand in an error."""


@dataclass(frozen=True)
class TextEncoderSource:
    """`config.model.text_encoder`: the folder of a published encoder, and the dtype to run it in."""

    path: str
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class T5Weights:
    """A frozen encoder: `params` are host arrays; `fingerprint` is the SHA-256 of its config and tensors as stored."""

    config: T5Config
    params: dict[str, Any]
    fingerprint: str


def read_t5_config(folder: Path, dtype: str = "bfloat16") -> T5Config:
    """The config of the encoder in `folder`. Raises UserError for a folder that holds no T5 that we can run."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no text encoder: {path.name} cannot be read ({error}); give the folder of a published T5 "
            "or umT5, with config.json, model.safetensors and spiece.model"
        ) from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in MODEL_TYPES:
        raise UserError(f"{path} describes a model of type '{kind}', which is none of {', '.join(MODEL_TYPES)}")
    projection = values.get("feed_forward_proj", "relu")
    if projection not in PROJECTIONS:
        raise UserError(f"{path}: feed_forward_proj is '{projection}', which is none of {', '.join(PROJECTIONS)}")
    names = ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff")
    wrong = [name for name in names if type(values.get(name)) is not int]
    if wrong:
        raise UserError(f"{path} lacks {', '.join(wrong)}, or they are no whole numbers; download it again")
    return T5Config(
        *(values[name] for name in names),
        is_gated=PROJECTIONS[projection],
        bias_per_layer=kind == "umt5",
        num_buckets=int(values.get("relative_attention_num_buckets", 32)),
        max_distance=int(values.get("relative_attention_max_distance", 128)),
        norm_eps=float(values.get("layer_norm_epsilon", 1e-6)),
        dtype=dtype,
    )


def load_t5(folder: Path, dtype: str = "bfloat16") -> T5Weights:
    """The encoder in `folder`, its weights as `dtype`.

    Raises UserError for a folder without one, damaged files, and tensors that are missing, misshaped or unknown.
    """
    cfg = read_t5_config(folder, dtype)
    shapes = jax.eval_shape(lambda: initialise(lambda rngs: T5Encoder(cfg, rngs), jax.random.key(0)))
    described = {k: v for k, v in vars(cfg).items() if k != "dtype"}
    digest, params = hashlib.sha256(json.dumps(described, sort_keys=True).encode()), {}
    try:
        with ExitStack() as opened:
            tensors = _open(folder, opened)
            names = {path: _stored_names(path, cfg, tensors) for path in _flat(shapes)}
            _check_names(folder, tensors, [name for listed in names.values() for name in listed])
            for path, shape in _flat(shapes).items():
                layers = _read(folder, tensors, names[path], path, shape, digest)
                params[path] = np.stack(layers) if path[0] == "blocks" else layers[0]
    except (OSError, SafetensorError) as error:
        raise UserError(f"the text encoder in {folder} cannot be read ({error}); download it again") from error
    return T5Weights(cfg, traverse_util.unflatten_dict(params), digest.hexdigest())


def find_tokenizer(folder: Path) -> Path:
    """The sentencepiece model published with the encoder: in its folder, or in `tokenizer` beside that."""
    candidates = folder / TOKENIZER, folder.parent / "tokenizer" / TOKENIZER
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UserError(f"the text encoder's tokenizer is missing: put {TOKENIZER} into {folder}")
    return found


def _flat(tree: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(tree)


def _open(folder: Path, opened: ExitStack) -> dict[str, Any]:
    """Tensor name → the open file that holds it."""
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        files = _indexed_files(folder / INDEX)
    else:
        pickled = " (pickled weights are never read: save them as safetensors)" if any(folder.glob("*.bin")) else ""
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}{pickled}")
    handles = [opened.enter_context(safe_open(folder / name, framework="numpy")) for name in files]
    return {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118 - no mapping


def _indexed_files(path: Path) -> list[str]:
    """The files that an index lists, which must lie beside it."""
    try:
        files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no index of safetensors files ({error!r}); download it again") from error
    lost = [name for name in files if Path(name).name != name or not (path.parent / name).is_file()]
    if lost:
        raise UserError(f"{path} lists {len(files)} files, of which {_some(lost)} are not beside it; download them")
    return files


BLOCK_NAMES: Mapping[tuple[str, ...], str] = {
    ("norm_attention", "scale"): "0.layer_norm",
    ("query", "kernel"): "0.SelfAttention.q",
    ("key", "kernel"): "0.SelfAttention.k",
    ("value", "kernel"): "0.SelfAttention.v",
    ("attention_out", "kernel"): "0.SelfAttention.o",
    ("relative_bias", "table"): "0.SelfAttention.relative_attention_bias",
    ("norm_mlp", "scale"): "1.layer_norm",
    ("mlp_out", "kernel"): "1.DenseReluDense.wo",
}


def _stored_names(path: tuple[str, ...], cfg: T5Config, tensors: Mapping[str, Any]) -> list[str]:
    """The names of the tensors, one a layer, that make the parameter at `path`."""
    if path == ("embedding",):
        return [next((name for name in EMBEDDINGS if name in tensors), EMBEDDINGS[0])]
    if path == ("norm", "scale"):
        return ["encoder.final_layer_norm.weight"]
    mlp_in = "wi_1" if cfg.is_gated else "wi"  # the gate, wi_0, is the one that is activated
    inputs = {("mlp_in", "kernel"): f"1.DenseReluDense.{mlp_in}", ("mlp_gate", "kernel"): "1.DenseReluDense.wi_0"}
    own = path[1:] if path[0] == "blocks" else path
    layers = range(cfg.depth) if path[0] == "blocks" else [0]  # T5 keeps the table of all layers in the first
    return [f"encoder.block.{i}.layer.{({**BLOCK_NAMES, **inputs})[own]}.weight" for i in layers]


def _check_names(folder: Path, tensors: Mapping[str, Any], expected: list[str]) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise UserError(f"{folder}: the weights lack {_some(missing)}; they are not those of config.json")
    known = {*expected, *EMBEDDINGS}
    unknown = [name for name in tensors if name not in known and not name.startswith(NOT_OURS)]
    if unknown:
        raise UserError(f"{folder}: the weights hold {_some(unknown)}, which the encoder of config.json has not")


def _some(names: list[str]) -> str:
    """The first few names, and how many there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _read(
    folder: Path, tensors: Mapping[str, Any], names: list[str], path: tuple[str, ...], shape: Any, digest: Any
) -> list[np.ndarray]:
    """The layers of one parameter in our layout and dtype; `digest` takes in their bytes as stored."""
    own = shape.shape[1:] if path[0] == "blocks" else shape.shape
    is_kernel = path[-1] == "kernel"
    # A kernel is stored as [out, in], with the heads and their width as one dim.
    inputs = int(np.prod(own[:-1])) if path[-2:-1] == ("attention_out",) else own[0]
    stored = (int(np.prod(own)) // inputs, inputs) if is_kernel else tuple(own)
    layers = []
    for name in names:
        found = tuple(tensors[name].get_slice(name).get_shape())
        if found != stored:
            raise UserError(f"{folder}: the tensor {name} has shape {found}, config.json says {stored}")
        tensor = tensors[name].get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {found} ".encode())
        digest.update(np.ascontiguousarray(tensor).view(np.uint8).data)
        layers.append((tensor.T if is_kernel else tensor).reshape(own).astype(shape.dtype))
    return layers
