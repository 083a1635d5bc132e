"""The PyTorch counterpart computes what our DiT computes: only then is its time one to compare with."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipeline.packing import RowLayout, SampleInput, pack_row, stack_rows
from sora_jax.diffusion.denoiser import dit_definition
from sora_jax.models.dit import Dit, DitConfig
from sora_jax.models.layers import initialise
from sora_jax.models.text_encoder import TextEncoderConfig

pytestmark = [
    pytest.mark.torch,
    # torch and what it imports warn about each other's releases
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

MODEL = DitConfig(8, TextEncoderConfig(20, 16, 1, 2, 2), width=48, depth=2, num_heads=2)
RAGGED, EQUAL = ((3, 4, 2), (1, 4, 4)), ((2, 4, 2), (2, 4, 2))


def batch_of(shapes: tuple[tuple[int, int, int], ...], row_tokens: int) -> dict[str, np.ndarray]:
    layout, rng = RowLayout(row_tokens, 10, 2, (1, 2, 2), 2, 2.0), np.random.default_rng(0)
    rows = []
    for _ in range(2):
        samples = []
        for shape, length in zip(shapes, (3, 7) if shapes == RAGGED else (5, 5), strict=True):
            latents = rng.standard_normal((*shape, 2), np.float32)
            known = np.zeros(layout.grid(shape), bool)
            known[0] = True
            samples.append(SampleInput(shape, 8.0, 4, rng.integers(1, 20, length).tolist(), latents, known))
        rows.append(pack_row(samples, layout))
    return stack_rows(rows)


@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
@pytest.mark.parametrize(("shapes", "row_tokens", "segments"), [(RAGGED, 14, 0), (EQUAL, 8, 0), (EQUAL, 8, 2)])
def test_copied_weights_give_the_same_values_and_gradients(modulation, shapes, row_tokens, segments):
    torch = pytest.importorskip("torch")
    from sora_jax.evaluation import torch_dit

    cfg, batch = dataclasses.replace(MODEL, modulation=modulation), batch_of(shapes, row_tokens)
    rng = np.random.default_rng(1)
    tree = jax.jit(lambda key: initialise(lambda rngs: Dit(cfg, rngs), key))(jax.random.key(0))
    params = jax.tree.map(lambda p: np.asarray(p + 0.1 * rng.standard_normal(p.shape, np.float32)), tree)
    times, live = rng.random((2, 4), np.float32), batch["segment_ids"] > 0
    weights = rng.standard_normal(batch["tokens"].shape, np.float32) * live[..., None]

    @jax.jit
    def ours(params, times, batch):
        def total(params):
            values = nnx.merge(dit_definition(cfg), params)(batch["tokens"], times, batch)
            return (values * weights).sum(), values

        return jax.grad(total, has_aux=True)(params)

    gradient, values = ours(params, times, batch)
    theirs = torch_dit.Dit(cfg, segments)
    theirs.load(params)
    assert sum(p.numel() for p in theirs.parameters()) == sum(x.size for x in jax.tree.leaves(params))
    tensors = {name: torch.as_tensor(x) for name, x in batch.items()}
    found = theirs(tensors["tokens"], torch.as_tensor(times), tensors)
    np.testing.assert_allclose(found.detach().numpy()[live], np.asarray(values)[live], rtol=1e-4, atol=1e-4)
    (found * torch.as_tensor(weights)).sum().backward()
    expected = torch_dit.Dit(cfg, segments)
    expected.load(gradient)
    for (name, own), (_, copied) in zip(theirs.named_parameters(), expected.named_parameters(), strict=True):
        ours_, scale = copied.detach().numpy(), np.abs(copied.detach().numpy()).max()
        np.testing.assert_allclose(own.grad.numpy(), ours_, rtol=1e-4, atol=1e-4 * max(scale, 1.0), err_msg=name)
