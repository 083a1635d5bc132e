"""Small random VAEs in the files and under the names of Wan 2.1's: diffusers' and the original's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sora_jax.models.wan import WanConfig
from sora_jax.models.wan_files import stored_tensors

SMALL = WanConfig(base_width=8, widths=(1, 1, 2), num_blocks=1, time=(True, True))
"""4x4x4: two scales of resampling are what it takes to be wrong about the second."""


def describe(config: WanConfig = SMALL, **changes: Any) -> dict[str, Any]:
    """A `config.json`."""
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": config.base_width,
        "z_dim": config.latent_channels,
        "dim_mult": list(config.widths),
        "num_res_blocks": config.num_blocks,
        "temperal_downsample": list(config.time),
        "attn_scales": [],
        "latents_mean": [0.1 * i for i in range(config.latent_channels)],
        "latents_std": [1 + 0.1 * i for i in range(config.latent_channels)],
        **changes,
    }


def tensors(config: WanConfig = SMALL, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under diffusers' names; every layer passes signals on at about their size."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in stored_tensors(config).values():
        size = np.prod(shape[1:]) ** -0.5 if name.endswith("weight") else 0.1
        offset = 1.0 if name.endswith("gamma") else 0.0
        made[name] = (offset + size * rng.standard_normal(shape)).astype(np.float32)
    return made


def write(folder: Path, config: dict[str, Any], values: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(values, folder / "diffusion_pytorch_model.safetensors")
    return folder


LAYERS = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
ENDS = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "encoder.conv_in": "encoder.conv1",
    "decoder.conv_in": "decoder.conv1",
    "encoder.norm_out": "encoder.head.0",
    "decoder.norm_out": "decoder.head.0",
    "encoder.conv_out": "encoder.head.2",
    "decoder.conv_out": "decoder.head.2",
}
MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}


def original_name(name: str, num_blocks: int) -> str:
    """The name that Wan's own code gives to a tensor of diffusers'."""
    module, _, leaf = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{leaf}"
    side, part, *rest = module.split(".")
    if part == "mid_block":
        block, inner = MIDDLE[".".join(rest[:2])], rest[2:]
    elif part == "down_blocks":
        block, inner = f"downsamples.{rest[0]}", rest[1:]
    else:  # the decoder's blocks: residual ones and what comes after them, numbered through all scales
        place = int(rest[2]) if rest[1] == "resnets" else num_blocks + 1
        block, inner = f"upsamples.{int(rest[0]) * (num_blocks + 2) + place}", rest[3:]
    inner = [LAYERS.get(inner[0], inner[0].removeprefix("conv_")), *inner[1:]]
    return ".".join([side, block, *inner, leaf])
