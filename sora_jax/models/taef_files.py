"""TAEF2's published weights from a local folder, as a `Codec`.

The folder holds `taef2_encoder.pth` and `taef2_decoder.pth` of github.com/madebyollin/taesd, which are never unpickled.
Its latents are those of a generator as they are: the statistics that the export carries are 0 and 1.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from data_pipeline.errors import UserError
from sora_jax.models.codec import Codec
from sora_jax.models.layers import initialise
from sora_jax.models.taef import TaefConfig, TinyAutoencoder
from sora_jax.models.torch_files import read_tensors

FILES = {"encoder": "taef2_encoder.pth", "decoder": "taef2_decoder.pth"}


def holds_taef(path: Path) -> bool:
    """Whether `path` is a folder with one of the two files."""
    return any((path / name).is_file() for name in FILES.values())


def load_taef(folder: Path, dtype: str = "float32") -> Codec:
    """The autoencoder in `folder`, its activations in `dtype`. The files say its width and its channels.

    Raises UserError for a missing or damaged file, and for tensors that are missing, misshaped, unknown or no
    finite numbers.
    """
    found: dict[tuple[str, ...], tuple[Path, np.ndarray]] = {}
    for side, name in FILES.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}; both {' and '.join(FILES.values())} are needed")
        tensors = read_tensors(folder / name)
        found |= {our_path(side, key): (folder / name, tensor) for key, tensor in tensors.items()}
    config = _config(folder, found, dtype)
    shapes = traverse_util.flatten_dict(
        jax.eval_shape(lambda: initialise(lambda rngs: TinyAutoencoder(config, rngs), jax.random.key(0)))
    )
    for what, paths in (("lacks", shapes.keys() - found.keys()), ("has the unknown", found.keys() - shapes.keys())):
        if paths:
            raise UserError(f"{folder} {what} {len(paths)} tensors of TAEF2's {len(shapes)}, such as {min(paths)}")
    arranged = {path: _arranged(*found[path], path, leaf.shape) for path, leaf in shapes.items()}
    zeros = np.zeros(config.latent_channels, np.float32)
    return Codec(config, traverse_util.unflatten_dict(arranged), zeros, zeros + 1)


def our_path(side: str, name: str) -> tuple[str, ...]:
    """Where a published tensor lies in our parameters: "11.pool.1.weight" is layer_11/pool_1/scale of its side."""
    place, *inner, leaf = name.split(".")
    within = ["_".join(inner)] if inner else []
    if leaf == "bias":
        kind = "bias"
    else:
        kind = "scale" if within == ["pool_1"] else "kernel"
    is_double = side == "decoder" and re.fullmatch(r"7|12|17", place)
    is_conv = not within or within[0].startswith("conv")
    convs = (["conv"] if is_double else []) + (["conv"] if is_conv else [])
    return (side, f"layer_{place}", *within, *convs, kind)


def _config(folder: Path, found: dict[tuple[str, ...], tuple[Path, np.ndarray]], dtype: str) -> TaefConfig:
    first = found.get(("decoder", "layer_1", "conv", "kernel"))
    if first is None or first[1].ndim != 4:
        raise UserError(f"{folder}/{FILES['decoder']} holds no 1.weight [width, channels, 3, 3]; it is no TAEF2")
    width, channels = first[1].shape[:2]
    return TaefConfig(latent_channels=channels, width=width, dtype=dtype)


def _arranged(file: Path, tensor: np.ndarray, path: tuple[str, ...], shape: tuple[int, ...]) -> jax.Array:
    """A published tensor in float32, channels last."""
    last = tensor
    if tensor.ndim == 4:
        last = np.moveaxis(tensor, (0, 1), (3, 2))
        last = last[0, 0] if len(shape) == 2 else last
    if last.shape != shape:
        raise UserError(f"{file}: {'/'.join(path)} comes from a tensor of {tensor.shape}, but needs {shape}")
    if not np.issubdtype(last.dtype, np.floating) or not np.all(np.isfinite(last)):
        raise UserError(f"{file}: {'/'.join(path)} holds numbers that are not finite; download it again")
    return jnp.asarray(last, jnp.float32)
