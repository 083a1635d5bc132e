"""A sample is a function of its prompt, size and seed: not of what is sampled beside it, nor of the devices."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.generation import DiffusionConfig, PackedSampler, Request
from sora_jax.diffusion.sharding import network_shardings
from sora_jax.models.codec import Codec
from sora_jax.models.dit import Dit, DitConfig
from sora_jax.models.layers import initialise
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.parallel import make_mesh, parse_mesh
from tests.sora_jax.diffusion.tiny_sampler import AUTOENCODER, CHANNELS, LAYOUT

# UniPC remembers and guidance doubles the rows: what could mix rows up does.
SAMPLING = SamplingConfig(num_steps=3, guidance=3.0, solver="unipc", guidance_rescale=0.5)
SIZES = ((16, 16, 9), (32, 16, 5), (16, 32, 5), (24, 16, 1), (16, 16, 1), (8, 8, 13), (48, 32, 1), (16, 24, 5))
PROMPTS = ("a", "red ball", "", "left moves a red ball", "ball", "moves", "a red", "a ball moves left")
REQUESTS = [
    Request(prompt, width, height, frames, 8.0, seed)
    for seed, (prompt, (width, height, frames)) in enumerate(zip(PROMPTS, SIZES, strict=True))
]


@functools.cache
def make_sampler() -> tuple[PackedSampler, Any]:
    """With random weights that need no compilation; nothing here decodes."""
    tokenizer = Tokenizer.train(["a red ball moves left"])
    model = DitConfig(CHANNELS, TextEncoderConfig(tokenizer.vocab_size, 16, 1, 2, 2), width=16, depth=1, num_heads=2)
    shapes = jax.eval_shape(lambda key: initialise(lambda rngs: Dit(model, rngs), key), jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: 0.3 * rng.standard_normal(p.shape, np.float32), shapes)
    codec = Codec(AUTOENCODER, {}, np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32))
    return PackedSampler(DiffusionConfig(model, FlowConfig(reference_tokens=8)), LAYOUT, codec, tokenizer), params


def latents(requests: list[Request], rows_per_batch: int, mesh: dict[str, int] | None = None) -> list[np.ndarray]:
    sampler, params = make_sampler()
    if mesh is not None:
        devices = make_mesh(mesh)
        sampler = dataclasses.replace(sampler, mesh=devices)
        params = jax.device_put(params, network_shardings(params, devices))
    return [found for _, found in sorted(sampler.sample(params, {}, requests, SAMPLING, rows_per_batch), key=_number)]


def _number(found):
    return found[0]


@pytest.fixture(scope="module")
def one_by_one() -> list[np.ndarray]:
    """A row for each, and a batch for each row."""
    return [latents([request], 1)[0] for request in REQUESTS]


def test_eight_packed_prompts_of_different_shapes_are_those_sampled_one_by_one(one_by_one):
    sampler, _ = make_sampler()
    assert max(map(len, sampler.pack(REQUESTS))) > 1, "rows must be shared"
    for row_by_row, alone in zip(latents(REQUESTS, 1), one_by_one, strict=True):
        np.testing.assert_allclose(row_by_row, alone, rtol=0, atol=1e-5)
    together = latents(REQUESTS[::-1], 8)[::-1]
    for packed, alone in zip(together, one_by_one, strict=True):
        np.testing.assert_allclose(packed, alone, rtol=0, atol=1e-5)
    assert [x.std() > 0.5 for x in together] == [True] * 8


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(one_by_one):
    assert np.array_equal(latents(REQUESTS[:1], 1)[0], one_by_one[0])
    other = latents([dataclasses.replace(REQUESTS[0], seed=99)], 1)[0]
    assert np.abs(other - one_by_one[0]).max() > 0.1


@pytest.mark.parametrize("mesh", ["data=2,context=4", "fsdp=2,context=2,tensor=2"])
def test_a_mesh_changes_nothing(mesh, one_by_one):
    for spread, alone in zip(latents(REQUESTS, 8, parse_mesh(mesh)), one_by_one, strict=True):
        np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-5)


def test_a_mesh_that_cannot_be():
    for text in ("data", "data=0", "data=2,data=4", "data=-1"):
        with pytest.raises(UserError, match="must be axes with their sizes"):
            parse_mesh(text)
    with pytest.raises(UserError, match="set --mesh so that its sizes multiply to 8"):
        make_mesh(parse_mesh("data=3"), option="--mesh")
