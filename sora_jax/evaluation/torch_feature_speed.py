"""A feature network of `torch_features.py` with the weights of ours, fed and read as ours is."""

# pyright: reportMissingImports=false
# PyTorch is an optional extra, which linting does without.

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from sora_jax.evaluation.feature_speed import SUBJECTS
from sora_jax.evaluation.protocols import Protocol
from sora_jax.evaluation.torch_features import Piergiaj, PytorchFid, VideoMaeV2
from sora_jax.models.feature_files import KINDS, FeatureWeights, divisor_of
from sora_jax.models.videomae import config_of


class TorchFeatures:
    """Clips to features, on the GPU if there is one, else the CPU.

    In float32 throughout, as ours are: PyTorch's default on a GPU would round convolutions to TF32.
    """

    def __init__(self, weights: FeatureWeights, protocol: Protocol, side: int, is_compiled: bool):
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.is_of_images = weights.network == "inception"
        naming = KINDS[SUBJECTS[weights.network].kind].naming
        state = {naming(name): torch.from_numpy(value) for name, value in weights.tensors.items()}
        module = _module(weights, protocol, side)
        module.load_state_dict(state, strict=False)  # norms count batches there, and VideoMAE has a classifier
        module = module.to(self.device).eval()
        self.module = torch.compile(module, dynamic=False) if is_compiled else module

    @torch.inference_mode()
    def __call__(self, clips: Float32[np.ndarray, "N T Y X 3"]) -> Float32[np.ndarray, "N D"]:
        x = torch.from_numpy(clips).to(self.device)
        x = (x[:, 0] if self.is_of_images else x).movedim(-1, 1).contiguous()
        found = self.module(x)
        features: Tensor = found[0] if self.is_of_images else found
        return features.cpu().numpy()


def _module(weights: FeatureWeights, protocol: Protocol, side: int) -> nn.Module:
    if weights.network == "videomae":
        config = config_of(weights.tensors)
        return VideoMaeV2(config.width, config.depth, config.num_heads, config.mlp_width, config.patch)
    divisor = divisor_of(weights)
    if weights.network == "inception":
        return PytorchFid(divisor)
    return Piergiaj(divisor, protocol.network.eps, side // 32)
