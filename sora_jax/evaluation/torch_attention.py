"""The PyTorch counterpart of packed attention: `scaled_dot_product_attention` of one segment after the other."""

# pyright: reportMissingImports=false
# PyTorch is an optional extra, which linting does without.

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sora_jax.evaluation.step_speed import best_mean_seconds


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """`[B, N, L, K]`. Each segment is a call without a mask: a mask would make PyTorch compute all of `[L, L]`."""
    segments = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([scaled_dot_product_attention(*parts) for parts in segments], dim=2)


def measure_torch_attention(
    tensors: list[np.ndarray], lengths: list[int], dtype: str, num_steps: int, rounds: int
) -> dict[str, Any]:
    """As `measure_attention`, on the GPU if there is one, else on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v, d_out = heads_first(tensors, dtype, device)

    def forward() -> Tensor:
        with torch.no_grad():
            return attend(q, k, v, lengths)

    def both() -> Tensor:
        return torch.autograd.grad(attend(q, k, v, lengths), (q, k, v), d_out)[0]

    def wait(_: Tensor) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = {
        name: best_mean_seconds(fn, wait, num_steps, rounds)[0]
        for name, fn in (("forward_s", forward), ("step_s", both))
    }
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"version": torch.__version__, "device": name, "threads": torch.get_num_threads(), **seconds}


def heads_first(tensors: list[np.ndarray], dtype: str, device: str = "cpu") -> list[Tensor]:
    """`[B, L, N, K]` → `[B, N, L, K]`, contiguous, with gradients: the layout that PyTorch likes."""
    return [
        torch.as_tensor(x, device=device, dtype=getattr(torch, dtype)).transpose(1, 2).contiguous().requires_grad_()
        for x in tensors
    ]
