"""The spacetime-patch diffusion transformer: packed latent patches, packed text, a noise level for each noise group.

Peebles & Xie 2023 (DiT) with: cross-attention to text (PixArt-α), QK-norm, 3D rotary positions, and modulation
computed once per noise group (segment, noisy or known) instead of once per image. S to XL use adaLN-zero; 2B and
above share one modulation network and keep a bias table per block (adaLN-single, PixArt-α eq. 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from data_pipeline.errors import UserError
from sora_jax import flops
from sora_jax.models import t5
from sora_jax.models.attention import KERNELS, CrossAttention, SelfAttention
from sora_jax.models.layers import (
    DTYPES,
    REMAT_POLICIES,
    RMSNorm,
    gather_groups,
    scan_and_measure,
    segment_mean,
    sinusoidal,
    stack,
)
from sora_jax.models.low_precision import MATMULS, use_matmul
from sora_jax.models.rope import Angles, rotary_3d
from sora_jax.models.t5 import T5Config
from sora_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from sora_jax.parallel import constrain
from sora_jax.types import Batch


@dataclass(frozen=True)
class DitConfig:
    """Sizes of one model. `patch_values` is P, the values of one patch: patch height x width x latent channels.

    `text` is the encoder trained with the model, or a frozen T5, whose features the batch brings as `text_features`.
    `matmul` is how the blocks multiply by their weights (`low_precision.py`); what is computed once a group, and the
    layers before and after the blocks, stay as they are.
    """

    patch_values: int
    text: TextEncoderConfig | T5Config
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: int = 4
    modulation: str = "adaln_zero"
    rope_theta: float = 10_000.0
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"
    matmul: str = "full"

    def __post_init__(self) -> None:
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise UserError(
                f"width={self.width} over num_heads={self.num_heads} must give an even head width; "
                f"try width={64 * self.num_heads}"
            )
        if self.depth < 1:
            raise UserError(f"the DiT's depth is {self.depth}, but must be at least 1")
        for name, value, valid in (
            ("attention_kernel", self.attention_kernel, ("auto", *KERNELS)),
            ("matmul", self.matmul, tuple(MATMULS)),
            ("modulation", self.modulation, ("adaln_zero", "adaln_single")),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("remat", self.remat, tuple(REMAT_POLICIES)),
        ):
            if value not in valid:
                raise UserError(f"the DiT's {name} is '{value}', which is none of {', '.join(valid)}")

    @property
    def text_width(self) -> int:
        """E, the width of the features that the blocks attend to; those of a frozen encoder are projected once."""
        return self.width if isinstance(self.text, T5Config) else self.text.width


# Width, depth, heads: S to XL as in the DiT paper's table 1, then the shapes of open video models of that size.
SIZES: dict[str, dict[str, int | str]] = {
    "S": dict(width=384, depth=12, num_heads=6),
    "B": dict(width=768, depth=12, num_heads=12),
    "L": dict(width=1024, depth=24, num_heads=16),
    "XL": dict(width=1152, depth=28, num_heads=16),
    "2B": dict(width=2048, depth=33, num_heads=16, modulation="adaln_single", dtype="bfloat16", remat="full"),
    "7B": dict(width=3584, depth=38, num_heads=28, modulation="adaln_single", dtype="bfloat16", remat="full"),
    "30B": dict(width=6144, depth=56, num_heads=48, modulation="adaln_single", dtype="bfloat16", remat="full"),
}


class DitBlock(nnx.Module):
    """Self-attention, cross-attention to text and MLP. Every residual branch starts at zero."""

    def __init__(self, cfg: DitConfig, rngs: nnx.Rngs):
        kind = DTYPES[cfg.dtype]
        self.norm_attention = RMSNorm(cfg.width, use_scale=False)
        self.attention = SelfAttention(cfg.width, cfg.num_heads, cfg.dtype, rngs, cfg.attention_kernel)
        self.norm_cross = RMSNorm(cfg.width)
        self.cross = CrossAttention(cfg.width, cfg.text_width, cfg.num_heads, cfg.dtype, rngs, cfg.attention_kernel)
        self.norm_mlp = RMSNorm(cfg.width, use_scale=False)
        self.mlp_in = nnx.Linear(cfg.width, cfg.width * cfg.mlp_ratio, dtype=kind, rngs=rngs)
        self.mlp_out = nnx.Linear(cfg.width * cfg.mlp_ratio, cfg.width, dtype=kind, rngs=rngs)
        use_matmul(cfg.matmul, self.attention, self.cross, self.mlp_in, self.mlp_out)
        if cfg.modulation == "adaln_zero":
            self.modulation = zero_linear(cfg.width, 6 * cfg.width, cfg, rngs)
        else:
            self.modulation_table = nnx.Param(jnp.zeros((6 * cfg.width,)))
        self.cfg = cfg

    def __call__(
        self,
        x: Float[Array, "B L D"],
        text: Float[Array, "B S E"],
        condition: Float[Array, "B K M"],
        batch: Batch,
        angles: Angles,
    ) -> Float[Array, "B L D"]:
        """`condition` is the activated conditioning `[B, K, D]` (adaLN-zero) or the shared `[B, K, 6D]` (single)."""
        if self.cfg.modulation == "adaln_zero":
            groups = self.modulation(condition)
        else:
            groups = condition + self.modulation_table[...].astype(condition.dtype)
        per_token = gather_groups(groups, batch["noise_group_ids"])
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(per_token, 6, axis=-1)
        ids, text_ids = batch["segment_ids"], batch["text_segment_ids"]
        h = self.norm_attention(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.attention(h, ids, angles)
        x = x + self.cross(self.norm_cross(x), text, ids, text_ids)
        h = self.norm_mlp(x) * (1 + scale_m) + shift_m
        h = constrain(jax.nn.gelu(self.mlp_in(h)), "row", "token", "mlp")
        return constrain(x + gate_m * self.mlp_out(h), "row", "token", None)


class Dit(nnx.Module):
    """Noised patches in, the network's prediction for each patch out (`flow.py` says of what)."""

    def __init__(self, cfg: DitConfig, rngs: nnx.Rngs):
        kind = DTYPES[cfg.dtype]
        self.patch_in = nnx.Linear(cfg.patch_values, cfg.width, dtype=kind, rngs=rngs)
        self.position_in = nnx.Linear(3 * POSITION_FEATURES, cfg.width, dtype=kind, rngs=rngs)
        if isinstance(cfg.text, T5Config):
            self.text_in = nnx.Linear(cfg.text.width, cfg.width, dtype=kind, rngs=rngs)
            self.norm_text = RMSNorm(cfg.width)
        else:
            self.text_encoder = TextEncoder(cfg.text, cfg.dtype, rngs)
        self.pooled_in = nnx.Linear(cfg.text_width, cfg.width, dtype=kind, rngs=rngs)
        self.time_in = nnx.Linear(TIME_FEATURES, cfg.width, dtype=kind, rngs=rngs)
        self.time_out = nnx.Linear(cfg.width, cfg.width, dtype=kind, rngs=rngs)
        if cfg.modulation == "adaln_single":
            self.modulation = zero_linear(cfg.width, 6 * cfg.width, cfg, rngs)
        self.blocks = stack(lambda rngs: DitBlock(cfg, rngs), cfg.depth, rngs)
        self.norm_out = RMSNorm(cfg.width, use_scale=False)
        self.modulation_out = zero_linear(cfg.width, 2 * cfg.width, cfg, rngs)
        self.patch_out = zero_linear(cfg.width, cfg.patch_values, cfg, rngs)
        self.cfg = cfg

    def __call__(
        self, tokens: Float[Array, "B L P"], group_times: Float[Array, "B K"], batch: Batch
    ) -> Float[Array, "B L P"]:
        """`tokens` are noised, `group_times` the noise level (0 clean, 1 noise) of each noise group; `batch` gives
        segment ids, positions and packed text as the stream lays them out. Returns float32."""
        return self._run(tokens, group_times, batch, lambda x: None)[0]

    def block_rms(
        self, tokens: Float[Array, "B L P"], group_times: Float[Array, "B K"], batch: Batch
    ) -> Float[Array, " layer"]:
        """The root mean square of the residual stream after each block, over all tokens that are no padding."""
        live = (batch["segment_ids"] > 0)[..., None]
        count = jnp.maximum(live.sum() * self.cfg.width, 1)

        def rms(x: Float[Array, "B L D"]) -> Float[Array, ""]:
            return jnp.sqrt(jnp.sum(jnp.square(jnp.where(live, x.astype(jnp.float32), 0.0))) / count)

        return self._run(tokens, group_times, batch, rms)[1]

    def _run(
        self,
        tokens: Float[Array, "B L P"],
        group_times: Float[Array, "B K"],
        batch: Batch,
        measure: Callable[[jax.Array], Any],
    ) -> tuple[Float[Array, "B L P"], Any]:
        cfg = self.cfg
        text = self._text(batch)
        condition = self._condition(text, group_times, batch["text_segment_ids"])
        shared = self.modulation(condition) if cfg.modulation == "adaln_single" else condition
        x = self.patch_in(tokens) + self.position_in(position_features(batch["positions"]))
        x = constrain(x, "row", "token", None)
        angles = rotary_3d(batch["positions"], cfg.width // cfg.num_heads, cfg.rope_theta)
        ids = {k: batch[k] for k in IDS}
        x, measured = scan_and_measure(self.blocks, x, cfg.remat, measure, text, shared, ids, angles)
        shift, scale = jnp.split(gather_groups(self.modulation_out(condition), batch["noise_group_ids"]), 2, axis=-1)
        return self.patch_out(self.norm_out(x) * (1 + scale) + shift).astype(jnp.float32), measured

    def _text(self, batch: Batch) -> Float[Array, "B S E"]:
        """What the blocks attend to: the trained encoder's features, or the frozen one's at the model's own scale."""
        if isinstance(self.cfg.text, T5Config):
            return self.norm_text(self.text_in(batch["text_features"]))
        return self.text_encoder(batch["text_ids"], batch["text_segment_ids"], batch["text_positions"])

    def _condition(
        self, text: Float[Array, "B S E"], group_times: Float[Array, "B K"], text_segment_ids: Int[Array, "B S"]
    ) -> Float[Array, "B K D"]:
        """The activated sum of a group's noise level and its segment's mean text feature."""
        times = sinusoidal(group_times * 1000.0, TIME_FEATURES, 10_000.0).astype(text.dtype)
        pooled = self.pooled_in(segment_mean(text, text_segment_ids, group_times.shape[1] // 2))
        per_group = jnp.repeat(pooled, 2, axis=1)  # groups 2g and 2g + 1 are segment g's noisy and known tokens
        return jax.nn.silu(self.time_out(jax.nn.silu(self.time_in(times))) + per_group)


FROZEN_TEXT = "frozen_text_encoder"
"""The part of `forward_flops` that has no backward pass."""
TIME_FEATURES = 256
POSITION_FEATURES = 64
IDS = ("noise_group_ids", "segment_ids", "text_segment_ids")


def position_features(positions: Float[Array, "B L 3"]) -> Float[Array, "B L features"]:
    """Fixed sine features of (time, row, column). Rotary positions are relative: without these a token could not tell
    latent 0, which codes one frame, from the others, which code several."""
    features = sinusoidal(positions, POSITION_FEATURES, 10_000.0)
    return features.reshape(*positions.shape[:2], 3 * POSITION_FEATURES)


def zero_linear(width_in: int, width_out: int, cfg: DitConfig, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer that starts at zero, so that a branch or the output does."""
    zeros = nnx.initializers.zeros
    return nnx.Linear(width_in, width_out, kernel_init=zeros, dtype=DTYPES[cfg.dtype], rngs=rngs)


def forward_flops(
    cfg: DitConfig, video_lengths: Sequence[int], text_lengths: Sequence[int], is_text_cached: bool = False
) -> dict[str, float]:
    """FLOPs of one forward pass over segments with these numbers of video and text tokens, by part.

    Every token pays for the weights that it passes through; modulation is paid for by noise groups (at most two a
    segment: one is counted). A frozen text encoder whose features are cached costs nothing. The conventions are those
    of `flops.py`.
    """
    video, text, groups = float(sum(video_lengths)), float(sum(text_lengths)), len(video_lengths)
    d, e, m = cfg.width, cfg.text_width, cfg.width * cfg.mlp_ratio
    per_block = {
        "self_attention": flops.linear(video, d, 4 * d) + flops.attention(video_lengths, video_lengths, d),
        "cross_attention": flops.linear(video, d, 2 * d)
        + flops.linear(text, e, 2 * d)
        + flops.attention(video_lengths, text_lengths, d),
        "mlp": flops.linear(video, d, 2 * m),
        "modulation": flops.linear(groups, d, 6 * d) if cfg.modulation == "adaln_zero" else 0.0,
    }
    parts = {name: cfg.depth * value for name, value in per_block.items()}
    shared = 6 * d if cfg.modulation == "adaln_single" else 0
    parts["modulation"] += flops.linear(groups, d, shared + 2 * d + d) + flops.linear(groups, TIME_FEATURES + e, d)
    parts["patches"] = flops.linear(video, 2 * cfg.patch_values + 3 * POSITION_FEATURES, d)
    if isinstance(cfg.text, T5Config):
        parts["text_in"] = flops.linear(text, cfg.text.width, d)
        return parts if is_text_cached else {**parts, FROZEN_TEXT: t5.forward_flops(cfg.text, text_lengths)}
    parts["text_encoder"] = cfg.text.depth * (
        flops.linear(text, e, 4 * e + 2 * e * cfg.text.mlp_ratio) + flops.attention(text_lengths, text_lengths, e)
    )
    return parts
