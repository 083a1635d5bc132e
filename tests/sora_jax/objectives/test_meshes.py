"""Sharded = unsharded, loss and gradients, over every axis of the mesh; and the DiT's tokens really are spread."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.packing import RowLayout, SampleInput, pack_row, stack_rows
from sora_jax.commands.train import load_config
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.generation import DiffusionConfig
from sora_jax.models.dit import Dit, DitConfig
from sora_jax.models.layers import initialise
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.objectives import diffusion
from sora_jax.objectives.diffusion import make_loss
from sora_jax.objectives.synthetic import DataSizes, without_data
from sora_jax.parallel import AXES, make_mesh, put_batch, state_shardings

LAYOUT = RowLayout(48, 16, 5, (1, 1, 1), 4, 2.0)
# Four heads: two and four devices along `context` share heads out, eight go round the ring, as do four beside `tensor`.
MODEL = DitConfig(4, TextEncoderConfig(20, 16, 1, 2, 2), width=32, depth=2, num_heads=4, attention_kernel="blockwise")
CONFIG = DiffusionConfig(MODEL, FlowConfig(reference_tokens=8))
SHAPES = ((2, 2, 3), (1, 3, 2), (3, 2, 2), (1, 1, 1), (2, 3, 2))

SOME = ({"context": 8}, {"fsdp": 2, "context": 2, "tensor": 2})
SIZES = itertools.product((1, 2, 4, 8), repeat=len(AXES))
EVERY = [{a: n for a, n in zip(AXES, sizes, strict=True) if n > 1} for sizes in SIZES if math.prod(sizes) == 8]


def name(shape: dict[str, int]) -> str:
    return "-".join(f"{axis}{n}" for axis, n in shape.items())


def mean_loss(params, batch):
    out = make_loss(CONFIG)(params, (), batch, jax.random.key(4), jnp.int32(0))
    return out.total / out.weight


@pytest.fixture(scope="module")
def params():
    tree = jax.jit(lambda key: {"dit": initialise(lambda rngs: Dit(MODEL, rngs), key)})(jax.random.key(0))
    rng = np.random.default_rng(1)  # the residual branches start at zero, where every test would pass
    return jax.tree.map(lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), tree)


@pytest.fixture(scope="module")
def batch():
    """Eight rows, of one to five segments in orders of their own."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[: 1 + number % 5]]
        latents = [rng.standard_normal((*shape, 4)).astype(np.float32) for shape in shapes]
        text = [3, 4 + number]
        rows.append(
            pack_row([SampleInput(x.shape[:3], 8.0, 4, text[: 1 + x.shape[0] % 2], x) for x in latents], LAYOUT)
        )
    return stack_rows(rows)


def compiled(params, batch):
    """Loss and gradients. Small programs run as well without LLVM's optimisation, and compile in half of the time."""
    fn = jax.jit(jax.value_and_grad(mean_loss), compiler_options={"xla_backend_optimization_level": 0})
    return fn.lower(params, batch).compile()


@pytest.fixture(scope="module")
def unsharded(params, batch):
    batch = {k: jnp.asarray(v) for k, v in batch.items()}
    return compiled(params, batch)(params, batch)


def assert_a_mesh_changes_nothing(shape, params, batch, unsharded):
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(params, mesh)), put_batch(batch, mesh)
        program = compiled(*placed)
        value, gradient = program(*placed)
    assert_tokens_are_spread(program.as_text(), shape.get("context", 1))
    np.testing.assert_allclose(value, unsharded[0], rtol=1e-5)
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(unsharded[1]))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(unsharded[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


def assert_tokens_are_spread(program: str, parts: int):
    """No device holds the activations of a whole row: the stream, scales and shifts, the MLP, a block's modulation."""
    widths = {MODEL.width * n for n in (1, 2, 4, 6)}
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", program)}
    lengths = {n for *rest, width in shapes if width in widths and len(rest) > 1 for n in rest}
    assert LAYOUT.row_tokens // parts in lengths and (parts == 1 or LAYOUT.row_tokens not in lengths)


@pytest.mark.parametrize("shape", SOME, ids=name)
def test_sharded_equals_unsharded(shape, params, batch, unsharded):
    assert_a_mesh_changes_nothing(shape, params, batch, unsharded)


@pytest.mark.long
@pytest.mark.parametrize("shape", [shape for shape in EVERY if shape not in SOME], ids=name)
def test_sharded_equals_unsharded_on_every_mesh_of_eight_devices(shape, params, batch, unsharded):
    assert len(EVERY) == 35
    assert_a_mesh_changes_nothing(shape, params, batch, unsharded)


def test_a_row_that_context_cannot_split_is_an_error_before_data_is_read():
    config = load_config("configs/dit_quickstart.py").to_dict()
    config["train"]["mesh"] = {"context": 7}
    for prepared in (diffusion.prepare, lambda c: without_data(c, DataSizes(16, 100, 1, 0))):
        with pytest.raises(UserError, match="row_tokens=96 .* over context=7 .* nearest legal value is 98"):
            prepared(config)
