"""The DiT of `models/dit.py` as one would write it in PyTorch: what our step's speed is held against.

Same parameters, same names, same function (a test copies weights and compares), with PyTorch's own parts:
`scaled_dot_product_attention`, `rms_norm`, `nn.Linear`. Rows of equal clips attend clip by clip; others with a mask.
"""

# pyright: reportMissingImports=false
# PyTorch is an optional extra, which linting does without.

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_pipeline.errors import UserError
from sora_jax.models.dit import POSITION_FEATURES, TIME_FEATURES, DitConfig
from sora_jax.models.text_encoder import TextEncoderConfig

TorchAngles = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    def __init__(self, width: int, use_scale: bool = True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width)) if use_scale else None
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (self.width,), self.scale, eps=1e-6).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with QK-norm, from `x` to `source`, with rotary positions if there are angles."""

    def __init__(self, width: int, source_width: int, num_heads: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(w, width) for w in (width, source_width, source_width))
        self.query_norm, self.key_norm = RMSNorm(width // num_heads), RMSNorm(width // num_heads)
        self.attention_out = nn.Linear(width, width)
        self.num_heads = num_heads

    def forward(
        self, x: Tensor, source: Tensor, mask: Tensor | None, segments: int, angles: TorchAngles | None
    ) -> Tensor:
        """`segments`: equal clips a row, which then need no mask; 1 with a mask `[B, L, S]` otherwise."""
        projected = (linear(a) for linear, a in ((self.query, x), (self.key, source), (self.value, source)))
        q, k, v = (a.unflatten(-1, (self.num_heads, -1)) for a in projected)
        q, k = self.query_norm(q), self.key_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = (a.unflatten(1, (segments, -1)).flatten(0, 1).transpose(1, 2) for a in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None])
        return self.attention_out(out.transpose(1, 2).reshape(x.shape))


class TextBlock(nn.Module):
    def __init__(self, cfg: TextEncoderConfig):
        super().__init__()
        self.norm_attention, self.norm_mlp = RMSNorm(cfg.width), RMSNorm(cfg.width)
        self.attention = Attention(cfg.width, cfg.width, cfg.num_heads)
        self.mlp_in = nn.Linear(cfg.width, cfg.width * cfg.mlp_ratio)
        self.mlp_out = nn.Linear(cfg.width * cfg.mlp_ratio, cfg.width)

    def forward(self, x: Tensor, mask: Tensor | None, segments: int, angles: TorchAngles) -> Tensor:
        h = self.norm_attention(x)
        x = x + self.attention(h, h, mask, segments, angles)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x)), approximate="tanh"))


class TextEncoder(nn.Module):
    def __init__(self, cfg: TextEncoderConfig):
        super().__init__()
        self.embedding = nn.Parameter(0.1 * torch.randn(cfg.vocab_size, cfg.width))
        self.blocks = nn.ModuleList(TextBlock(cfg) for _ in range(cfg.depth))
        self.norm = RMSNorm(cfg.width)
        self.head_width = cfg.width // cfg.num_heads

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None, segments: int) -> Tensor:
        x, angles = F.embedding(ids, self.embedding), rotary(positions[..., None], self.head_width, 10_000.0)
        for block in self.blocks:
            x = block(x, mask, segments, angles)
        return self.norm(x)


class DitBlock(nn.Module):
    def __init__(self, cfg: DitConfig):
        super().__init__()
        width = cfg.width
        self.norm_attention, self.norm_mlp = RMSNorm(width, False), RMSNorm(width, False)
        self.attention = Attention(width, width, cfg.num_heads)
        self.norm_cross = RMSNorm(width)
        self.cross = Attention(width, cfg.text_width, cfg.num_heads)
        self.mlp_in = nn.Linear(width, width * cfg.mlp_ratio)
        self.mlp_out = nn.Linear(width * cfg.mlp_ratio, width)
        if cfg.modulation == "adaln_zero":
            self.modulation = nn.Linear(width, 6 * width)
        else:
            self.modulation_table = nn.Parameter(torch.zeros(6 * width))
        self.is_single = cfg.modulation != "adaln_zero"

    def forward(self, x: Tensor, text: Tensor, condition: Tensor, batch: Mapping[str, Any]) -> Tensor:
        groups = condition + self.modulation_table if self.is_single else self.modulation(condition)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (batch["groups"] @ groups).chunk(6, dim=-1)
        h = self.norm_attention(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.attention(h, h, batch["self_mask"], batch["segments"], batch["angles"])
        h = self.norm_cross(x)
        x = x + self.cross(h, text, batch["cross_mask"], batch["segments"], None)
        h = self.norm_mlp(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh"))


class Dit(nn.Module):
    """Raises UserError for a frozen text encoder. `segments`: equal clips that fill each row, 0 for any."""

    def __init__(self, cfg: DitConfig, segments: int = 0):
        super().__init__()
        if not isinstance(cfg.text, TextEncoderConfig):
            raise UserError("the PyTorch counterpart has no frozen text encoder; leave out config.model.text_encoder")
        width = cfg.width
        self.patch_in = nn.Linear(cfg.patch_values, width)
        self.position_in = nn.Linear(3 * POSITION_FEATURES, width)
        self.text_encoder = TextEncoder(cfg.text)
        self.pooled_in = nn.Linear(cfg.text_width, width)
        self.time_in, self.time_out = nn.Linear(TIME_FEATURES, width), nn.Linear(width, width)
        if cfg.modulation == "adaln_single":
            self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(DitBlock(cfg) for _ in range(cfg.depth))
        self.norm_out, self.modulation_out = RMSNorm(width, False), nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, cfg.patch_values)
        self.cfg, self.segments = cfg, segments

    def forward(self, tokens: Tensor, group_times: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """As `models.dit.Dit` is called."""
        cfg, ids, text_ids = self.cfg, batch["segment_ids"], batch["text_segment_ids"]
        equal, segments = self.segments > 0, max(self.segments, 1)
        text_mask, self_mask, cross_mask = (
            None if equal else visible(a, b) for a, b in ((text_ids, text_ids), (ids, ids), (ids, text_ids))
        )
        text = self.text_encoder(batch["text_ids"], batch["text_positions"].float(), text_mask, segments)
        times = sinusoidal(1000.0 * group_times, TIME_FEATURES).to(text.dtype)
        pooled = segment_mean(text, text_ids, group_times.shape[1] // 2).to(text.dtype)
        per_group = self.pooled_in(pooled).repeat_interleave(2, dim=1)
        condition = F.silu(self.time_out(F.silu(self.time_in(times))) + per_group)
        shared = self.modulation(condition) if cfg.modulation == "adaln_single" else condition
        features = sinusoidal(batch["positions"], POSITION_FEATURES).flatten(2)
        x = self.patch_in(tokens) + self.position_in(features)
        groups = F.one_hot(batch["noise_group_ids"].long(), group_times.shape[1]).to(x.dtype)
        shape = {
            "groups": groups,
            "self_mask": self_mask,
            "cross_mask": cross_mask,
            "segments": segments,
            "angles": rotary(batch["positions"], cfg.width // cfg.num_heads, cfg.rope_theta),
        }
        for block in self.blocks:
            arguments = (x, text, shared, shape)
            x = checkpoint(block, *arguments, use_reentrant=False) if cfg.remat == "full" else block(*arguments)
        shift, scale = (groups @ self.modulation_out(condition)).chunk(2, dim=-1)
        return self.patch_out(self.norm_out(x) * (1 + scale) + shift).float()

    def load(self, params: Mapping[str, Any]) -> None:
        """Copies our parameters `[layer, ..., in, ..., out]` into the parameters of the same names."""
        with torch.no_grad():
            for name, own in self.named_parameters():
                parts = ["kernel" if part == "weight" else part for part in name.split(".")]
                layer = [int(part) for part in parts if part.isdigit()]
                value: Any = params
                for part in parts:
                    value = value if part.isdigit() else value[part]
                array = np.asarray(value[layer[0]] if layer else value)
                is_matrix = parts[-1] == "kernel"
                array = array.reshape(own.shape[1], own.shape[0]).T if is_matrix else array.reshape(own.shape)
                own.copy_(torch.tensor(array))


def visible(ids: Tensor, key_ids: Tensor) -> Tensor:
    """Which keys a token sees: those of its segment. Padding sees everything, since its result counts for nothing."""
    return (ids[:, :, None] == key_ids[:, None, :]) | (ids[:, :, None] == 0)


def sinusoidal(x: Tensor, width: int) -> Tensor:
    half = width // 2
    angles = x[..., None].float() * 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def segment_mean(x: Tensor, segment_ids: Tensor, num_segments: int) -> Tensor:
    one_hot = F.one_hot(segment_ids.long(), num_segments + 1)[..., 1:].float()
    return one_hot.transpose(1, 2) @ x.float() / one_hot.sum(1).clamp(min=1.0)[..., None]


def rotary(positions: Tensor, head_width: int, theta: float) -> TorchAngles:
    """Angles of positions `[B, L, 1 or 3]`; of three, time takes the pairs that rows and columns leave over."""
    half, space = head_width // 2, head_width // 6
    pairs = (half - 2 * space, space, space) if positions.shape[-1] == 3 else (half,)
    frequencies = (theta ** (-torch.arange(n, device=positions.device) / n) for n in pairs)
    angles = torch.cat([positions[..., i, None] * f for i, f in enumerate(frequencies)], dim=-1)
    return angles.cos()[:, :, None], angles.sin()[:, :, None]


def rotate(x: Tensor, angles: TorchAngles) -> Tensor:
    cos, sin = angles
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
