"""Wan 2.1's published VAE from a local file, as a `Codec`.

Read are a folder as diffusers writes it (`config.json` beside `diffusion_pytorch_model.safetensors`), and one file of
the published network alone: safetensors, or the original `Wan2.1_VAE.pth`, which is never unpickled. Both layouts of
names are known, diffusers' and the original; which one it is, the names say. Latents are normalised by the mean and
deviation that were published with the weights (diffusers' `latents_mean`, `latents_std`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from data_pipeline.errors import UserError
from sora_jax.config import build_config
from sora_jax.models.codec import Codec
from sora_jax.models.layers import initialise
from sora_jax.models.torch_files import read_tensors
from sora_jax.models.wan import WanAutoencoder, WanConfig

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKLWan"
FIELDS = {
    "base_dim": "base_width",
    "z_dim": "latent_channels",
    "dim_mult": "widths",
    "num_res_blocks": "num_blocks",
    "temperal_downsample": "time",
}
"""diffusers' name (its spelling) → `WanConfig`'s."""
FIXED: Mapping[str, tuple[Any, ...]] = {
    "attn_scales": ([],),
    "is_residual": (False,),
    "patch_size": (None, 1),
    "in_channels": (3,),
    "out_channels": (3,),
}
"""What else diffusers' class can be asked for, and the values that Wan 2.1 has: Wan 2.2's 4x16x16 VAE differs."""
# fmt: off
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
# fmt: on
"""Of Wan 2.1's latents, per channel, as published."""
RENAMES = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)
"""The original's names → diffusers'. The decoder's blocks are numbered through in the original: see `_rename`."""
SHOWN = 3
"""So many names stand in an error."""


def load_wan(path: Path, dtype: str = "float32", sha256: str = "") -> Codec:
    """The VAE at `path`, its activations in `dtype`; `sha256` is what the file must have, or how that begins.

    Raises UserError as `read_config` and `read_weights` do.
    """
    config, mean, std, weights = WanConfig(dtype=dtype), LATENT_MEAN, LATENT_STD, path
    if path.is_dir():
        config, mean, std = read_config(path / CONFIG, dtype)
        weights = path / WEIGHTS
    params = read_weights(weights, config, sha256)
    return Codec(config, params, np.asarray(mean, np.float32), np.asarray(std, np.float32))


def read_weights(path: Path, config: WanConfig, sha256: str = "") -> dict[str, Any]:
    """The parameters in a file, in float32 and channels last.

    Raises UserError for a missing or damaged file, and for tensors that are missing, misshaped, unknown or
    no finite numbers.
    """
    tensors = _read(path, sha256)
    if "encoder.conv1.weight" in tensors:
        tensors = {_rename(name, config.num_blocks): tensor for name, tensor in tensors.items()}
    stored = stored_tensors(config)
    _check(path, tensors, dict(stored.values()), config)
    arranged = {p: jnp.asarray(_channels_last(tensors[name], p), jnp.float32) for p, (name, _) in stored.items()}
    return traverse_util.unflatten_dict(arranged)


def read_config(path: Path, dtype: str) -> tuple[WanConfig, tuple[float, ...], tuple[float, ...]]:
    """The config that diffusers wrote, with the latents' mean and deviation.

    Raises UserError for a file that cannot be read and for anything that is not Wan 2.1's architecture.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); give the `vae` folder of a Wan 2.1 in diffusers' layout, with {CONFIG} "
            f"and {WEIGHTS}, or the published file of weights alone"
        ) from error
    if kind != CLASS:
        raise UserError(f"{path} describes a '{kind}'; known is {CLASS}, Wan 2.1's VAE")
    for name, known in FIXED.items():
        if values.get(name, known[0]) not in known:
            raise UserError(f"{path}: {name} is {values[name]!r}, but of {CLASS} only {known[0]!r} is known (Wan 2.1)")
    if values.get("decoder_base_dim") not in (None, values.get("base_dim", WanConfig.base_width)):
        raise UserError(
            f"{path}: decoder_base_dim is {values['decoder_base_dim']}, but encoder and decoder must be as wide: "
            f"base_dim is {values.get('base_dim', WanConfig.base_width)}"
        )
    fields = {ours: values[theirs] for theirs, ours in FIELDS.items() if theirs in values}
    config = build_config(WanConfig, {**fields, "dtype": dtype}, str(path))
    return config, *(_statistics(path, values, name, config) for name in ("latents_mean", "latents_std"))


def _statistics(path: Path, values: Mapping[str, Any], name: str, config: WanConfig) -> tuple[float, ...]:
    default = LATENT_MEAN if name == "latents_mean" else LATENT_STD
    found = values.get(name, default)
    try:
        numbers = tuple(map(float, found))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {name} is {found!r}, but must be a list of numbers") from error
    if len(numbers) != config.latent_channels:
        raise UserError(f"{path}: {name} has {len(numbers)} numbers, but z_dim is {config.latent_channels}")
    if not np.all(np.isfinite(numbers)) or (name == "latents_std" and min(numbers) <= 0):
        raise UserError(f"{path}: {name} is {found!r}, but must be finite, and deviations above 0")
    return numbers


def stored_tensors(config: WanConfig) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
    """Our path → the name and shape in diffusers' layout, of every parameter."""
    shapes = jax.eval_shape(lambda: initialise(lambda rngs: WanAutoencoder(config, rngs), jax.random.key(0)))
    return {path: _stored(path, leaf.shape) for path, leaf in traverse_util.flatten_dict(shapes).items()}


def _stored(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Kernels are [out, in, (time,) height, width] in PyTorch, matrices are kernels of one position."""
    *module, leaf = path
    name = ".".join(module).replace(".resample", ".resample.1")  # after the padding, or the upsampling
    dims = 2 if {"attentions", "resample"} & set(path) else 3
    if leaf == "bias":
        return f"{name}.bias", shape
    if leaf == "gamma":
        return f"{name}.gamma", shape + (1,) * dims
    kernel = (*shape[:-2], *(1,) * (dims + 2 - len(shape)))
    return f"{name}.weight", (shape[-1], shape[-2], *kernel)


def _read(path: Path, sha256: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"there is no file {path}; give Wan 2.1's VAE, or the folder with {CONFIG} and {WEIGHTS}")
    if sha256:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(sha256.lower()):
            raise UserError(f"{path} has SHA-256 {found}, expected {sha256}; download it again")
    if path.suffix in (".pth", ".pt", ".bin"):
        return read_tensors(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); download it again") from error


def _rename(name: str, num_blocks: int) -> str:
    """diffusers' name of one of the original's tensors."""

    def up_block(found: re.Match[str]) -> str:
        scale, place = divmod(int(found[1]), num_blocks + 2)
        return f".up_blocks.{scale}." + ("upsamplers.0." if place > num_blocks else f"resnets.{place}.")

    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"\.upsamples\.(\d+)\.", up_block, name)


def _check(
    path: Path, tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], config: WanConfig
) -> None:
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of {len(expected)} tensors of Wan's VAE with base_dim {config.base_width}, "
            f"such as {_some(missing)}; it holds {_some(unknown) or 'no others'}"
        )
    if unknown:
        raise UserError(f"{path} holds {_some(unknown)}, which Wan 2.1's VAE has not; is it of another architecture?")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{path}: {name} has shape {tensors[name].shape}, expected {shape}; another config than the "
                f"published one (base_dim {config.base_width}) give the folder with its {CONFIG}"
            )
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise UserError(f"{path}: {name} holds {tensors[name].dtype}, not floating-point numbers")
        if not np.all(np.isfinite(tensors[name])):
            raise UserError(f"{path}: {name} holds numbers that are not finite; download it again")


def _channels_last(tensor: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """A kernel as [(time, height, width,) in, out], where only some layers have all three."""
    if path[-1] != "kernel":
        return tensor.reshape(tensor.shape[0])
    kernel = np.moveaxis(tensor, (0, 1), (-1, -2))
    return kernel.reshape(*(n for n in kernel.shape[:-2] if n > 1), *kernel.shape[-2:])


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
