"""PyTorch's attention, a call a segment, computes what ours does; both are timed by `sora-jax bench attention`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.commands.main import main
from sora_jax.evaluation.attention_speed import draw_row
from sora_jax.flops import equal_parts
from sora_jax.models.attention import attention

pytestmark = pytest.mark.torch


def test_torch_attends_within_segments_as_we_do():
    from sora_jax.evaluation.torch_attention import attend, heads_first

    tensors, lengths = draw_row(2, 50, 3, 8), equal_parts(50, 4)
    assert lengths == [13, 13, 12, 12]
    ids = jnp.asarray(np.tile(np.repeat(np.arange(1, 5, dtype=np.int32), lengths), (2, 1)))
    theirs = attend(*heads_first(tensors[:3], "float32"), lengths).transpose(1, 2).detach().numpy()
    ours = attention(*map(jnp.asarray, tensors[:3]), ids, ids)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_bench_attention_measures_pytorch_beside_ours(capsys):
    command = "bench attention --row_tokens 128 --heads 2 --head_width 8 --segments 1,2 --steps 1 --rounds 1 --pytorch"
    assert main(command.split()) == 0
    for line in json.loads(capsys.readouterr().out.strip().splitlines()[-1])["lines"]:
        theirs = line["pytorch"]
        np.testing.assert_allclose(theirs["its_time_over_ours"], theirs["step_s"] / line["step_s"])
