"""Small parts that every model shares, and the way from a module to a pytree and back.

Parameters are float32; `dtype` is the dtype of activations. Norms and softmax run in float32, each cast visible.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

BLOCK_INPUT = "block_input"
"""The name by which a remat policy knows the residual stream between blocks."""

REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""What the backward pass finds saved: everything, only block inputs, or also the results of weight matmuls; `offload`
keeps the block inputs in the host's memory, of which a CPU's own is no other."""


def parameters(module: nnx.Module) -> dict[str, Any]:
    """The module's parameters as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def initialise(make: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> dict[str, Any]:
    """Fresh parameters of `make(rngs)`; call it under `jit` to place them with `out_shardings`."""
    return parameters(make(nnx.Rngs(key)))


def definition(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef[Any]:
    """The module without its parameters, built abstractly: `nnx.merge(definition, params)` brings it to life."""
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """`depth` copies of a block with their parameters stacked on a leading `layer` dim, for `scan_blocks`."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stacked(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return stacked(rngs)


def scan_blocks(blocks: nnx.Module, x: jax.Array, remat: str, *args: Any) -> jax.Array:
    """`x` through stacked blocks, `x = block(x, *args)`: one block is compiled, whatever the depth."""
    return scan_and_measure(blocks, x, remat, lambda x: None, *args)[0]


def scan_and_measure(
    blocks: nnx.Module, x: jax.Array, remat: str, measure: Callable[[jax.Array], Any], *args: Any
) -> tuple[jax.Array, Any]:
    """`scan_blocks`, and what `measure` makes of `x` after each block, stacked on a leading `layer` dim."""
    graph, state = nnx.split(blocks)

    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
        x = nnx.merge(graph, layer)(checkpoint_name(x, BLOCK_INPUT), *args)
        return x, measure(x)

    if REMAT_POLICIES[remat] is not None:
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(body, x, state)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation of the last dim (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, width: int, *, use_scale: bool = True, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((width,))) if use_scale else None
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        if self.scale is not None:
            y = y * self.scale[...]
        return y.astype(x.dtype)


def sinusoidal(x: Float[Array, "..."], width: int, max_period: float) -> Float[Array, "... D"]:
    """Cosines and sines of `x` at `width / 2` frequencies from 1 down to 1 / `max_period` (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half) / half)
    angles = x[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def gather_groups(values: Float[Array, "B K D"], ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """`values[b, ids[b, l]]` as a one-hot matmul: the gradient of a gather is a scatter-add, which is serial on CPU
    and slow on TPU, while the matmul costs K / D of a layer."""
    one_hot = jax.nn.one_hot(ids, values.shape[1], dtype=values.dtype)
    return jnp.einsum("BLK,BKD->BLD", one_hot, values)


def segment_mean(x: Float[Array, "B S E"], segment_ids: Int[Array, "B S"], num_segments: int) -> Float[Array, "B G E"]:
    """The mean of each segment's tokens (segment g of the result has id g + 1); zero for an empty segment."""
    one_hot = jax.nn.one_hot(segment_ids - 1, num_segments, dtype=jnp.float32)
    sums = jnp.einsum("BSG,BSE->BGE", one_hot, x.astype(jnp.float32))
    return (sums / jnp.maximum(one_hot.sum(1)[..., None], 1.0)).astype(x.dtype)
