"""A plan of decoding a clip: chunk by chunk, tile by tile, on one device, as `sample` does it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sora_jax.models.autoencoder import AutoencoderConfig, VideoAutoencoder, forward_flops
from sora_jax.models.codec import apply
from sora_jax.models.layers import initialise
from sora_jax.models.tiling import Tiling, tiles
from sora_jax.planning import hlo
from sora_jax.planning.compile import DoesNotFit, compile_lowered
from sora_jax.planning.topologies import Topology
from sora_jax.planning.traffic import memory_traffic


def plan_decoding(
    codec: AutoencoderConfig, latent_shape: tuple[int, ...], tile: int, topology: Topology, device: Any
) -> dict[str, Any]:
    """Bytes of one device and its least seconds for a clip of `latent_shape` (F, H, W, C).

    Compiles the decoder for the first chunk of a tile (`tile` pixels, 0 for whole frames), which is one latent longer
    than the others; these take that much less. Raises UserError for a tile that does not fit the compression.
    """
    tiling, scale = Tiling.of_option(tile, codec.spatial_compression), codec.spatial_compression
    frames, height, width, channels = latent_shape
    side, overlap = (tiling.tile // scale, tiling.overlap // scale) if tiling else (max(height, width), 0)
    places = tiles(height, width, side, overlap)
    chunk = min(frames, 1 + codec.chunk_latents), min(height, side), min(width, side)
    program = compile_lowered(_lower(codec, (1, *chunk, channels), device))
    pixels = 1 + (chunk[0] - 1) * codec.temporal_compression, scale * chunk[1], scale * chunk[2]
    plan: dict[str, Any] = {
        "tiles": len(places),
        "chunks": 1 + math.ceil(max(0, frames - chunk[0]) / codec.chunk_latents),
        "of": f"{pixels[0]} frames of {pixels[2]}x{pixels[1]}",
    }
    remedy = f"smaller tiles: --tile {max(tile // 2, 4 * scale) if tile else 512}"
    if isinstance(program, DoesNotFit):
        return {**plan, "bytes": program.needed, "fits": False, "remedy": remedy}
    # Encoder and decoder mirror each other, but for what the encoder's last layer does for the variance.
    flops = forward_flops(codec, *pixels) / 2
    seconds = max(
        flops / topology.chip.peak_bf16, memory_traffic(hlo.parse(program.text)) / topology.chip.memory_bandwidth
    )
    fits = program.total <= topology.usable_memory
    return {
        **plan,
        "bytes": program.total,
        "fits": fits,
        **({} if fits else {"remedy": remedy}),
        "flops": flops * len(places) * frames / chunk[0],
        "seconds_on_one_device": seconds * len(places) * frames / chunk[0],
        "compile_seconds": round(program.seconds, 1),
    }


def _lower(codec: AutoencoderConfig, shape: tuple[int, ...], device: Any) -> Any:
    params = jax.eval_shape(lambda: initialise(lambda rngs: VideoAutoencoder(codec, rngs), jax.random.key(0)))
    alone = NamedSharding(Mesh(np.array([device]), ("one",)), PartitionSpec())

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone)

    decode = jax.jit(lambda params, latents: apply(codec, params).decode(latents, []))
    return decode.lower(jax.tree.map(place, params), place(jax.ShapeDtypeStruct(shape, jnp.float32)))
