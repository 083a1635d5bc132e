"""The PyTorch counterpart of Wan's autoencoder: diffusers' AutoencoderKLWan with the weights of a codec."""

# pyright: reportMissingImports=false
# PyTorch and diffusers are optional extras, which linting does without.

import diffusers
import numpy as np
import torch
from flax import traverse_util
from jaxtyping import Float32, UInt8

from sora_jax.models.codec import Codec
from sora_jax.models.wan_files import FIELDS, stored_tensors


class TorchWan:
    """Codes whole videos as `Codec` does, from and to arrays on the host; on the GPU if there is one, else the CPU."""

    def __init__(self, codec: Codec):
        options = {theirs: getattr(codec.config, ours) for theirs, ours in FIELDS.items()}
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        model = diffusers.AutoencoderKLWan(**options)
        model.load_state_dict({name: torch.tensor(value) for name, value in torch_layout(codec).items()})
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, codec.config.dtype)
        self.model = model.to(self.device, self.dtype).eval()

    @torch.no_grad()
    def encode(self, video: UInt8[np.ndarray, "B T Y X 3"]) -> Float32[np.ndarray, "B F H W C"]:
        x = torch.as_tensor(video).to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        mean = self.model.encode(x.to(self.dtype)).latent_dist.mean
        return mean.permute(0, 2, 3, 4, 1).float().cpu().numpy()

    @torch.no_grad()
    def decode(self, latents: Float32[np.ndarray, "B F H W C"]) -> UInt8[np.ndarray, "B T Y X 3"]:
        z = torch.as_tensor(latents).to(self.device).permute(0, 4, 1, 2, 3)
        pixels = (self.model.decode(z.to(self.dtype)).sample.float() + 1) * 127.5
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()


def torch_layout(codec: Codec) -> dict[str, Float32[np.ndarray, "..."]]:
    """A Wan codec's weights under diffusers' names and in PyTorch's layout."""
    params, tensors = traverse_util.flatten_dict(codec.params), {}
    for path, (name, shape) in stored_tensors(codec.config).items():
        value = np.asarray(params[path])
        tensors[name] = (np.moveaxis(value, (-1, -2), (0, 1)) if path[-1] == "kernel" else value).reshape(shape)
    return tensors
