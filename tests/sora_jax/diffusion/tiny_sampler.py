"""A sampler with random weights, small enough to compile in seconds: 8x8 pixels and 4 frames a latent, one latent a
token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from data_pipeline.packing import RowLayout, segment_offsets, stack_rows, unpack_tokens
from data_pipeline.tokenizer import Tokenizer
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.generation import DiffusionConfig, PackedSampler, Request
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.dit import Dit, DitConfig
from sora_jax.models.layers import initialise
from sora_jax.models.text_encoder import TextEncoderConfig

CHANNELS = 4
LAYOUT = RowLayout(24, 40, 3, (1, 1, 1), CHANNELS, 2.0)
AUTOENCODER = AutoencoderConfig(CHANNELS, stages=(Stage(1, 2, 8, 1), Stage(2, 2, 8, 1)))
FAST = SamplingConfig(num_steps=2, guidance=1.0)


def noisy(params: Any) -> Any:
    """Outputs and residual branches start at zero, where every test would pass."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), params)


@functools.cache
def make_codec() -> Codec:
    params = jax.jit(lambda key: initialise(lambda rngs: VideoAutoencoder(AUTOENCODER, rngs), key))(jax.random.key(0))
    statistics = np.linspace(-0.5, 0.5, CHANNELS, dtype=np.float32), np.linspace(0.5, 2.0, CHANNELS, dtype=np.float32)
    return Codec(AUTOENCODER, noisy(params), *statistics)


@functools.cache
def make_sampler() -> tuple[PackedSampler, Any]:
    """(the sampler, the parameters of its network)."""
    tokenizer = Tokenizer.train(["a red ball moves left"])
    model = DitConfig(CHANNELS, TextEncoderConfig(tokenizer.vocab_size, 16, 1, 2, 2), width=24, depth=2, num_heads=2)
    params = jax.jit(lambda key: initialise(lambda rngs: Dit(model, rngs), key))(jax.random.key(1))
    config = DiffusionConfig(model, FlowConfig(reference_tokens=8))
    return PackedSampler(config, LAYOUT, make_codec(), tokenizer), noisy(params)


def sample(requests: list[Request]) -> list[np.ndarray]:
    """The normalised latents of each request, in rows of one shape."""
    sampler, params = make_sampler()
    found: list[np.ndarray] = []
    for numbers in sampler.pack(requests):
        batch = stack_rows([sampler._row(requests, numbers)])
        tokens = sampler._sample(params, {}, batch, [[requests[n] for n in numbers]], FAST)
        for n, offset in zip(numbers, segment_offsets(batch["sample_tokens"][0]), strict=False):
            found.append(unpack_tokens(tokens[0], offset, sampler.latent_shape(requests[n]), LAYOUT.patch_size))
    return found


def clip(num_frames: int, height: int = 16, width: int = 16, seed: int = 0) -> UInt8[np.ndarray, "T Y X 3"]:
    """Smooth colours that move, so that no two frames are equal."""
    rng = np.random.default_rng(seed)
    phase, speed = rng.uniform(0, 6, 3), rng.uniform(0.2, 0.5, 3)
    t, y, x = np.meshgrid(*map(np.arange, (num_frames, height, width)), indexing="ij")
    waves = np.sin(phase + speed * t[..., None] + 0.3 * y[..., None] + 0.2 * x[..., None])
    return np.round(127.5 + 100 * waves).astype(np.uint8)
