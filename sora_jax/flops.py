"""FLOPs that do useful work, counted by one published convention, and the peaks to hold them against.

One multiply-add is two FLOPs. A step costs three forward passes (one forward, two in the backward); recomputation
under remat earns nothing, padding earns nothing. Attention is counted per segment and without a causal discount:
4 x queries x keys x width for logits and values. Norms, activations and embeddings look-ups are not counted.
The DiT paper's "Gflops" are multiply-adds: ours are twice them.
"""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

CONVENTION = "2 FLOPs a multiply-add; a step is 3 forward passes; attention within segments, not causal; no padding"
"""The name under which a measurement gives its FLOPs."""
TRAINING = 3
"""Forward passes' worth of FLOPs in a training step: 2 + 4 = 6 for each weight and token."""

PEAK_BF16_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bf16 peak of one device by `device.device_kind`, from the makers' data sheets."""


def linear(num_tokens: float, width_in: int, width_out: int) -> float:
    """FLOPs of one matrix product, forward."""
    return 2.0 * num_tokens * width_in * width_out


def attention(num_queries: Sequence[int] | np.ndarray, num_keys: Sequence[int] | np.ndarray, width: int) -> float:
    """FLOPs of logits and weighted values, forward, for segments with these numbers of queries and keys."""
    return 4.0 * width * float(np.dot(np.asarray(num_queries, np.float64), np.asarray(num_keys, np.float64)))


def equal_parts(total: int, number: int) -> list[int]:
    """`total` tokens as `number` segments whose lengths differ by at most one: the mix of a full row."""
    return [total // number + (i < total % number) for i in range(number)]


def measured_matmul_peak(dtype: str = "float32", size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of the best of `repeats` square matrix products on the default device: the peak for MFU where no data
    sheet names one."""
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds)
