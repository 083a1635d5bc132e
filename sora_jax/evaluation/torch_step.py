"""A training step of the PyTorch counterpart, timed as ours is: loss, gradient, clipping, AdamW, average."""

# pyright: reportMissingImports=false
# PyTorch is an optional extra, which linting does without.

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_pipeline.errors import UserError
from sora_jax.config import OptimConfig
from sora_jax.diffusion.generation import DiffusionConfig
from sora_jax.evaluation.step_speed import best_mean_seconds
from sora_jax.evaluation.torch_dit import Dit


def measure_torch_step(
    cfg: DiffusionConfig,
    optim: OptimConfig,
    batch: dict[str, np.ndarray],
    segments: int,
    microbatches: int,
    is_compiled: bool,
    num_steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Seconds a step on the GPU, if there is one, else on the CPU, and the loss of the last.

    Mixed precision is autocast's. `remat` "full" recomputes each block, any other value nothing. Raises UserError where
    torch.compile does not work.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    step = TorchStep(cfg, optim, segments, microbatches, is_compiled, device)
    tensors = {name: torch.as_tensor(array, device=device) for name, array in batch.items()}
    try:
        step_s, loss = best_mean_seconds(lambda: step(tensors), _wait, num_steps, rounds)
    except Exception as error:  # inductor, triton and the C++ compiler each raise their own
        if not is_compiled:
            raise
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"torch.compile does not work here ({reason[:200]}); measure it with --pytorch eager"
        ) from error
    return {
        "version": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "is_compiled": is_compiled,
        "step_s": step_s,
        "loss": float(loss),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


class TorchStep:
    """`step(batch) -> loss`, and everything that it updates."""

    def __init__(
        self, cfg: DiffusionConfig, optim: OptimConfig, segments: int, microbatches: int, is_compiled: bool, device: str
    ):
        model = Dit(cfg.model, segments).to(device)
        self.network = torch.compile(model, dynamic=False) if is_compiled else model
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=optim.learning_rate,
            betas=(optim.b1, optim.b2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optim.ema_decay))
        self.model, self.flow, self.clip_norm = model, cfg.flow, optim.clip_norm
        self.microbatches, self.device = microbatches, device
        self.is_mixed = cfg.model.dtype == "bfloat16"

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for i in range(self.microbatches):
            rows = {name: x.chunk(self.microbatches)[i] for name, x in batch.items()}
            loss = self._loss(rows) / self.microbatches
            loss.backward()
            total += loss.detach()
        if self.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return total

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean squared error of the velocity, at a time drawn for each clip as `flow.draw_times` does."""
        flow, counts = self.flow, batch["sample_tokens"]
        t = torch.sigmoid(flow.logit_mean + flow.logit_std * torch.randn(counts.shape, device=self.device))
        a = (counts.clamp(min=1) / flow.reference_tokens).sqrt()
        t = a * t / (1 + (a - 1) * t)
        group_times = torch.stack([t, torch.zeros_like(t)], dim=-1).flatten(1)
        of_token = group_times.gather(1, batch["noise_group_ids"].long())[..., None]
        x_0, noise = batch["tokens"], torch.randn_like(batch["tokens"])
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.is_mixed):
            output = self.network((1 - of_token) * x_0 + of_token * noise, group_times, batch)
        is_noisy = (batch["segment_ids"] > 0) & (batch["noise_group_ids"] % 2 == 0)
        return (output - (noise - x_0)).square().mean(-1)[is_noisy].mean()


def _wait(loss: Tensor) -> float:
    """Reading the loss waits for the step's forward pass; the device for all of it."""
    if loss.is_cuda:
        torch.cuda.synchronize()
    return float(loss)
