"""How fast attention is on the attached device, for rows of the same length with more and more segments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax import flops
from sora_jax.evaluation.step_speed import best_mean_seconds, compile_timed
from sora_jax.models.attention import attention


def draw_row(rows: int, row_tokens: int, heads: int, head_width: int, seed: int = 0) -> list[np.ndarray]:
    """q, k, v and the gradient of the output, `[B, L, N, K]` in float32."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, row_tokens, heads, head_width)).astype(np.float32) for _ in range(4)]


def measure_attention(
    tensors: list[np.ndarray], lengths: list[int], dtype: str, kernel: str, num_steps: int, rounds: int
) -> dict[str, Any]:
    """Seconds of a forward pass and of a forward and backward pass, on one device: the best round's mean."""
    rows = tensors[0].shape[0]
    ids = jnp.asarray(np.tile(np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths), (rows, 1)))
    q, k, v, d_out = (jnp.asarray(x, dtype) for x in tensors)

    def forward(q, k, v, ids):
        return attention(q, k, v, ids, ids, kernel)

    def both(q, k, v, ids, d_out):
        out, pull_back = jax.vjp(lambda *qkv: forward(*qkv, ids), q, k, v)
        return out, pull_back(d_out)

    seconds, compile_s = {}, 0.0
    for name, fn, arguments in (("forward_s", forward, (q, k, v, ids)), ("step_s", both, (q, k, v, ids, d_out))):
        compiled, took = compile_timed(jax.jit(fn), *arguments)
        compile_s += took
        seconds[name], _ = best_mean_seconds(
            lambda compiled=compiled, arguments=arguments: compiled(*arguments),
            jax.block_until_ready,
            num_steps,
            rounds,
        )
    return {"compile_s": compile_s, **seconds}


def useful_flops(tensors: list[np.ndarray], lengths: list[int]) -> float:
    """FLOPs of the forward pass, by the convention of `flops.py`."""
    rows, _, heads, head_width = tensors[0].shape
    return rows * flops.attention(lengths, lengths, heads * head_width)
