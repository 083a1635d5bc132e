"""CLIP's weights from a folder as Hugging Face publishes it, as one safetensors file with its config and tokenizer.

Nothing is fetched and nothing in a file is run: `model.safetensors` is read, or else `pytorch_model.bin` without
unpickling (`torch_files.py`). Tensors keep their published names. The fingerprint is the SHA-256 over the numbers in
float32, the sizes and the tokenizer.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from data_pipeline.errors import UserError
from sora_jax.models.clip import ClipConfig, ClipText, ClipVision, TowerConfig
from sora_jax.models.feature_files import Tensors, fingerprint_of, read_described, write_described
from sora_jax.models.layers import initialise
from sora_jax.models.torch_files import read_tensors

KIND, FORMAT = "clip", "sora_jax clip 1"
CONFIG, TOKENIZER, WEIGHTS, PICKLED = "config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"
WHERE = "https://huggingface.co/openai/clip-vit-base-patch32 (or -base-patch16, -large-patch14)"
START, END = "<|startoftext|>", "<|endoftext|>"
# What Hugging Face leaves out of a config.json that it writes today: the sizes of ViT-B/32.
TEXT = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
TEXT |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "vocab_size": 49_408, "max_position_embeddings": 77}
VISION = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
VISION |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224, "patch_size": 32, "num_channels": 3}
DEFAULTS = {"text": TEXT, "vision": VISION}
NO_SIZES = ("hidden_act", "layer_norm_eps")
TOWER = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps")
PLACES = {
    "text.embedding": "text_model.embeddings.token_embedding.weight",
    "text.positions": "text_model.embeddings.position_embedding.weight",
    "text.norm": "text_model.final_layer_norm",
    "text.projection": "text_projection",
    "text.blocks": "text_model.encoder.layers",
    "vision.patches": "vision_model.embeddings.patch_embedding",
    "vision.class_token": "vision_model.embeddings.class_embedding",
    "vision.positions": "vision_model.embeddings.position_embedding.weight",
    "vision.norm_in": "vision_model.pre_layrnorm",  # as published
    "vision.norm": "vision_model.post_layernorm",
    "vision.projection": "visual_projection",
    "vision.blocks": "vision_model.encoder.layers",
}
IN_BLOCK = {
    "norm_attention": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.out_proj",
    "norm_mlp": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
NOT_OURS = re.compile(r"logit_scale|.*\.position_ids")


@dataclass(frozen=True)
class ClipWeights:
    """Tensors by their published names, and the text of `tokenizer.json`."""

    config: ClipConfig
    tensors: Tensors
    tokenizer: str

    @property
    def fingerprint(self) -> str:
        plain = json.dumps([dataclasses.asdict(self.config), self.tokenizer], sort_keys=True)
        return hashlib.sha256(f"{fingerprint_of(self.tensors)} {plain}".encode()).hexdigest()


def read_clip_config(path: Path) -> ClipConfig:
    """The sizes in a published `config.json`. Raises UserError where it describes no CLIP that we can run."""
    values = _json(path)
    if values.get("model_type") != "clip":
        raise UserError(f"{path} describes a model of type '{values.get('model_type')}', not 'clip'; get {WHERE}")
    described = {name: values.get(f"{name}_config") or {} for name in DEFAULTS}
    if not all(isinstance(tower, dict) for tower in described.values()):
        raise UserError(f"{path}: text_config and vision_config must be objects; get {WHERE}")
    text, vision = (known | described[name] for name, known in DEFAULTS.items())
    for tower in (text, vision):
        eps = tower["layer_norm_eps"]
        if not isinstance(tower["hidden_act"], str) or type(eps) not in (int, float) or eps <= 0:
            raise UserError(
                f"{path}: hidden_act is {tower['hidden_act']!r} and layer_norm_eps {eps!r}, but must be a name and a "
                f"number above 0; get {WHERE}"
            )
    projection = values.get("projection_dim", 512)
    sizes = [(n, tower[n]) for tower, known in ((text, TEXT), (vision, VISION)) for n in known if n not in NO_SIZES]
    wrong = [name for name, value in (*sizes, ("projection_dim", projection)) if type(value) is not int]
    if wrong or vision["num_channels"] != 3:
        names = ", ".join(wrong) or "num_channels"
        raise UserError(f"{path}: {names} must be whole numbers, and num_channels 3; get {WHERE}")
    return ClipConfig(
        *(TowerConfig(*(tower[name] for name in TOWER)) for tower in (text, vision)),
        *(text["vocab_size"], text["max_position_embeddings"], vision["image_size"], vision["patch_size"]),
        projection,
    )


def expected_names(cfg: ClipConfig) -> dict[str, tuple[tuple[str, ...], int | None, tuple[int, ...]]]:
    """Published name -> the parameter's path, its layer (None: no block), and the shape as published."""
    found = {}
    for path, shape in _parameter_shapes(cfg).items():
        place = PLACES[".".join(path[:2])]
        if path[1] == "blocks":
            for i in range(shape[0]):
                name = f"{place}.{i}.{IN_BLOCK[path[2]]}.{PARTS[path[-1]]}"
                found[name] = (path, i, _stored_shape(path, shape[1:]))
        else:
            name = f"{place}.{PARTS[path[-1]]}" if len(path) > 2 else place
            found[name] = (path, None, _stored_shape(path, shape))
    return found


def _parameter_shapes(cfg: ClipConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path of each parameter of both towers -> its shape."""
    towers = {"text": lambda rngs: ClipText(cfg, rngs), "vision": lambda rngs: ClipVision(cfg, rngs)}
    shapes = jax.eval_shape(lambda: {name: initialise(make, jax.random.key(0)) for name, make in towers.items()})
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}


def _stored_shape(path: tuple[str, ...], own: tuple[int, ...]) -> tuple[int, ...]:
    """A kernel is stored as [out, in], with heads and their width as one dim; that of patches as [out, 3, Y, X]."""
    if "patches" in path:
        return own[3], own[2], own[0], own[1]
    if path[-1] == "bias":
        return (int(np.prod(own)),)
    if path[-1] != "kernel":
        return own
    inputs = int(np.prod(own[:-1])) if "attention_out" in path else own[0]
    return int(np.prod(own)) // inputs, inputs


def read_published_clip(folder: Path) -> ClipWeights:
    """The weights, sizes and tokenizer in a published folder.

    Raises UserError where a file is missing or damaged, and for tensors that are missing, misshaped, unknown or not
    finite (each with both shapes).
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; for --kind {KIND} name that of {WHERE}")
    config, tensors = read_clip_config(folder / CONFIG), _read_tensors(folder)
    expected = expected_names(config)
    unknown = [name for name in tensors if name not in expected and not NOT_OURS.fullmatch(name)]
    if unknown:
        raise UserError(f"{folder}: the weights hold {unknown[0]}, which the network of {CONFIG} has not; get {WHERE}")
    kept = {}
    for name, (_, _, shape) in expected.items():
        value = tensors.get(name)
        if value is None or value.shape != shape:
            is_what = "missing" if value is None else f"of shape {value.shape}"
            raise UserError(f"{folder}: {name} is {is_what}, {CONFIG} says {shape}; get {WHERE}")
        kept[name] = np.ascontiguousarray(value, np.float32)
        if not np.all(np.isfinite(kept[name])):
            raise UserError(f"{folder}: {name} holds numbers that are not finite; download it again")
    _json(folder / TOKENIZER)
    return ClipWeights(config, kept, (folder / TOKENIZER).read_text(encoding="utf-8"))


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    if (folder / WEIGHTS).is_file():
        try:
            return load_file(folder / WEIGHTS)
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(f"{folder / WEIGHTS} cannot be read ({error}); download it again") from error
    if (folder / PICKLED).is_file():
        return read_tensors(folder / PICKLED)
    raise UserError(f"{folder} holds neither {WEIGHTS} nor {PICKLED}; get {WHERE}")


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); get {WHERE}") from error
    return values


def save_clip(weights: ClipWeights, out: Path) -> None:
    """One safetensors file, the tokenizer in its metadata. Raises UserError where it cannot be written."""
    about = {"format": FORMAT, "config": dataclasses.asdict(weights.config), "fingerprint": weights.fingerprint}
    write_described(weights.tensors, {"sora_jax": json.dumps(about), TOKENIZER: weights.tokenizer}, out)


def load_clip(path: Path) -> ClipWeights:
    """What `save_clip` wrote. Raises UserError for a missing or damaged file, or one of something else."""
    remedy = f"get {WHERE}, then run `sora-jax evaluate convert-weights --kind {KIND} --weights THAT --out {path}`"
    tensors, about, held = read_described(path, "CLIP", remedy)
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path} holds {about.get('network', 'nothing that convert-weights wrote')}, not CLIP: {remedy}"
        )
    try:
        towers = (TowerConfig(**about["config"][name]) for name in ("text", "vision"))
        sizes = {name: value for name, value in about["config"].items() if name not in ("text", "vision")}
        weights = ClipWeights(ClipConfig(*towers, **sizes), tensors, held.get(TOKENIZER, ""))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not say its sizes ({error!r}): {remedy}") from error
    if weights.fingerprint != about.get("fingerprint"):
        raise UserError(f"{path} is damaged: it has another fingerprint than when it was written; {remedy}")
    return weights


def clip_params(weights: ClipWeights) -> dict[str, Any]:
    """The parameters of `ClipText` and `ClipVision`, under "text" and "vision"."""
    shapes, found = _parameter_shapes(weights.config), {}
    for name, (path, layer, _) in expected_names(weights.config).items():
        stored, shape = weights.tensors[name], shapes[path]
        if layer is None:
            found[path] = _ours(path, stored, shape)
        else:
            found.setdefault(path, []).append(_ours(path, stored, shape[1:]))
    return traverse_util.unflatten_dict({path: np.asarray(value) for path, value in found.items()})


def _ours(path: tuple[str, ...], stored: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if "patches" in path:
        return np.ascontiguousarray(stored.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(stored.T if path[-1] == "kernel" else stored).reshape(shape)
