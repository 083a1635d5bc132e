"""Memory: estimates against what the compiler reserves; what does not fit is refused before sampling."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.packing import row_spec
from sora_jax.diffusion.denoiser import SamplingConfig, sample_rows
from sora_jax.diffusion.generation import Request
from sora_jax.diffusion.guidance import kind_of
from sora_jax.generation.memory import check_fits, decoding_bytes, sampling_bytes, with_tiles
from sora_jax.models import codec as codecs
from tests.sora_jax.diffusion.tiny_sampler import make_codec, make_sampler

GIB = 2**30


def request(width: int, height: int, frames: int = 1) -> Request:
    return Request("a ball", width, height, frames, 8.0)


def test_sampling_is_estimated_within_a_factor_of_what_the_compiler_reserves():
    sampler, params = make_sampler()
    sampler = dataclasses.replace(sampler, layout=dataclasses.replace(sampler.layout, row_tokens=1024))
    sampling = SamplingConfig(2, 3.0)
    batch = {name: jax.ShapeDtypeStruct((1, *shape), kind) for name, (shape, kind) in row_spec(sampler.layout).items()}
    noise = jax.ShapeDtypeStruct(batch["tokens"].shape, np.float32)
    program = sample_rows.lower(
        sampler.config.model, sampler.config.flow, params, {}, batch, noise, sampling.numbers, sampling.shift, 2,
        num_steps=2, solver="euler", kind=kind_of(sampling.numbers),
    )  # fmt: skip
    reserved = program.compile().memory_analysis().temp_size_in_bytes
    assert reserved / 2 < sampling_bytes(sampler, 1, sampling) < 3 * reserved


def test_decoding_is_estimated_within_a_factor_of_what_the_compiler_reserves():
    codec = make_codec()
    latents = jax.ShapeDtypeStruct((1, 5, 16, 16, codec.config.latent_channels), np.float32)
    reserved = codecs._decode.lower(codec.config, codec.params, latents, []).compile().memory_analysis()
    assert reserved.temp_size_in_bytes / 2 < decoding_bytes(codec, 17, 128, 128) < 4 * reserved.temp_size_in_bytes


def test_what_does_not_fit_is_refused_with_what_would():
    sampler, sampling = make_sampler()[0], SamplingConfig(2, 3.0)
    large = [request(2048, 1024)]
    fitting = sampler.fitting(large)
    need = sampling_bytes(fitting, 1, sampling)
    check_fits(fitting, large, 1, sampling, free=2 * need)
    message = "1 frames of 2048x1024 are 32768 tokens, .*such as 1448x720"
    with pytest.raises(UserError, match=message):
        check_fits(fitting, large, 1, sampling, free=need // 2)
    with pytest.raises(UserError, match="--rows_per_batch 1"):
        check_fits(fitting, large, 8, sampling, free=2 * need)


def test_frames_that_are_large_to_decode_are_decoded_in_tiles_that_are_not():
    codec = make_codec()
    assert with_tiles(codec, [request(256, 256, 17)]).tiling is None
    large = request(16384, 16384, 5)
    assert decoding_bytes(codec, 5, 16384, 16384) > 4 * GIB
    tiled = with_tiles(codec, [request(64, 64), large])
    assert tiled.tiling is not None and tiled.tiling.tile == 1024 and decoding_bytes(tiled, 5, 16384, 16384) < 4 * GIB


@pytest.mark.parametrize(
    ("asked", "canvas"), [((1920, 1080), (1920, 1080)), ((1080, 1919), (1080, 1920)), ((1, 9), (8, 16))]
)
def test_any_size_is_made_on_the_next_canvas(asked, canvas):
    sampler = make_sampler()[0]
    assert sampler.canvas_size(*asked) == canvas
    assert sampler.latent_shape(request(*asked)) == (1, canvas[1] // 8, canvas[0] // 8)


def test_what_the_canvas_has_more_is_cut_off_at_the_right_and_the_bottom():
    sampler, params = make_sampler()
    found = dict(sampler.generate(params, {}, [request(13, 10, 5), request(16, 16, 5)], SamplingConfig(2, 1.0)))
    assert found[0].shape == (5, 10, 13, 3)
    assert np.abs(found[0].astype(int) - found[1][:, :10, :13].astype(int)).max() <= 1
