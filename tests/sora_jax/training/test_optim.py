import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.config import OptimConfig
from sora_jax.training.optim import clip_by_norm, decay_mask, make_optimizer, make_schedule, muon_dims


def params_of(layers: int = 3) -> dict:
    keys = iter(jax.random.split(jax.random.key(0), 8))
    return {
        "blocks": {
            "mlp_in": {"kernel": jax.random.normal(next(keys), (layers, 6, 10)), "bias": jnp.zeros((layers, 10))},
            "query": {"kernel": jax.random.normal(next(keys), (layers, 6, 2, 3)), "bias": jnp.zeros((layers, 2, 3))},
            "attention_out": {"kernel": jax.random.normal(next(keys), (layers, 2, 3, 6))},
            "norm": {"scale": jnp.ones((layers, 6))},
        },
        "embedding": jax.random.normal(next(keys), (12, 6)),
        "patch_out": {"kernel": jax.random.normal(next(keys), (6, 4)), "bias": jnp.zeros(4)},
        "middle": {"kernel": jax.random.normal(next(keys), (6, 6))},
    }


def updates_over(config: OptimConfig, params: dict, gradients: list[dict]) -> dict:
    optimizer = make_optimizer(config, num_steps=100)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step, gradient in enumerate(gradients):
        change, state = update(gradient, state, params, jnp.int32(step))
    return change


def test_muon_of_stacked_weights_is_muon_of_each_layer():
    config = OptimConfig(optimizer="muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.1)
    params = params_of()
    keys = jax.random.split(jax.random.key(1), 3)
    gradients = [jax.tree.map(lambda p, k=k: jax.random.normal(k, p.shape), params) for k in keys]
    stacked = updates_over(config, params, gradients)["blocks"]
    for layer in range(3):
        # A layer of its own, without the stacked dim: the path no longer says "blocks".
        own = {"layer": jax.tree.map(lambda p, i=layer: p[i], params["blocks"])}
        own_gradients = [{"layer": jax.tree.map(lambda g, i=layer: g[i], g["blocks"])} for g in gradients]
        alone = updates_over(config, own, own_gradients)["layer"]
        jax.tree.map(lambda a, b, i=layer: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), stacked, alone)


def test_muon_orthogonalises_matrices_with_heads_merged_and_leaves_the_rest_to_adam():
    params = params_of()
    config = OptimConfig(optimizer="muon", learning_rate=1.0, schedule="constant", warmup_steps=0)
    gradient = jax.tree.map(lambda p: jax.random.normal(jax.random.key(5), p.shape), params)
    muon = updates_over(config, params, [gradient])
    adam = updates_over(OptimConfig(learning_rate=1.0, schedule="constant", warmup_steps=0), params, [gradient])
    for name, rows in (("mlp_in", 6), ("query", 6), ("attention_out", 6)):
        matrices = np.asarray(muon["blocks"][name]["kernel"]).reshape(3, rows, -1)
        singular = np.linalg.svd(matrices, compute_uv=False) / (0.2 * np.sqrt(max(matrices.shape[1:])))
        # Five Newton-Schulz steps bring singular values near 1, not to it.
        assert (singular > 0.3).all() and (singular < 1.5).all(), name
    for path in (("embedding",), ("patch_out", "kernel"), ("blocks", "norm", "scale"), ("blocks", "query", "bias")):
        ours, theirs = muon, adam
        for part in path:
            ours, theirs = ours[part], theirs[part]
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=str(path))


def test_muon_dims_read_all_but_the_last_dim_except_for_heads():
    assert muon_dims("dit/blocks/query/kernel", jnp.zeros((2, 6, 2, 3))) == ((1,), (2, 3))
    assert muon_dims("captioner/text/cross_blocks/query/kernel", jnp.zeros((2, 6, 2, 3))) == ((1,), (2, 3))
    assert muon_dims("dit/blocks/attention_out/kernel", jnp.zeros((2, 2, 3, 6))) == ((1, 2), (3,))
    assert muon_dims("encoder/conv/kernel", jnp.zeros((3, 3, 4, 8))) == ((0, 1, 2), (3,))
    assert muon_dims("dit/blocks/mlp_in/bias", jnp.zeros((2, 8))) is None


def test_decay_spares_biases_norms_and_embeddings():
    mask = decay_mask(params_of())
    assert mask["blocks"]["mlp_in"] == {"kernel": True, "bias": False}
    assert mask["blocks"]["query"] == {"kernel": True, "bias": False}
    assert not mask["blocks"]["norm"]["scale"]
    assert not mask["embedding"]
    assert mask["patch_out"] == {"kernel": True, "bias": False}


def test_schedule_warms_up_to_the_peak_and_ends_at_the_final_fraction():
    for name, middle in (("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)):
        config = OptimConfig(learning_rate=2.0, schedule=name, warmup_steps=10, final_fraction=0.1)
        rate = make_schedule(config, num_steps=110)
        np.testing.assert_allclose(rate(jnp.int32(4)), 1.0, rtol=1e-6)
        np.testing.assert_allclose(rate(jnp.int32(10)), 2.0, rtol=1e-6)
        np.testing.assert_allclose(rate(jnp.int32(60)), 2.0 * middle, rtol=1e-6)
        np.testing.assert_allclose(rate(jnp.int32(110)), 2.0 if name == "constant" else 0.2, rtol=1e-5)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(UserError, match="adamw, muon"):
        make_optimizer(OptimConfig(optimizer="sgd"), 10)
    with pytest.raises(UserError, match="constant, cosine, linear"):
        make_schedule(OptimConfig(schedule="step"), 10)


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [("learning_rate", -1e-3, "at least 0"), ("ema_decay", 1.0, "below 1"), ("b2", 1.5, "below 1")],
)
def test_numbers_out_of_range_are_named_with_their_bound(field, value, bound):
    with pytest.raises(UserError, match=rf"config.optim.{field} .*{bound}"):
        OptimConfig(**{field: value})


def test_clipping_scales_only_long_gradients():
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped = clip_by_norm(gradient, jnp.float32(5.0), 1.0)
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [0.6, 0.8], rtol=1e-6)
    assert clip_by_norm(gradient, jnp.float32(5.0), 10.0)["a"][0] == 3.0
    assert clip_by_norm(gradient, jnp.float32(5.0), 0.0)["a"][0] == 3.0


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.03), ("muon", 0.15)])
def test_a_first_moment_in_bfloat16_takes_half_the_bytes_and_the_same_way_down(optimizer, rate):
    """A least-squares problem, solved with both: the losses stay within a few percent of where they started."""
    target = {"blocks": {"mlp_in": {"kernel": jax.random.normal(jax.random.key(3), (2, 8, 8))}}, "bias": jnp.ones(8)}
    config = OptimConfig(optimizer=optimizer, learning_rate=rate, warmup_steps=0)
    inputs = jax.random.normal(jax.random.key(4), (100, 16, 8))

    def loss(params, x):
        def predict(tree):
            first, second = tree["blocks"]["mlp_in"]["kernel"]
            return x @ first + tree["bias"] + (x**2) @ second

        return jnp.mean(jnp.square(predict(params) - predict(target)))

    def descend(config):
        made = make_optimizer(config, num_steps=100)
        params = jax.tree.map(jnp.zeros_like, target)
        state = made.init(params)

        def step(carried, batch):
            (params, state), (number, x) = carried, batch
            value, gradient = jax.value_and_grad(loss)(params, x)
            change, state = made.update(gradient, state, params, number)
            return (jax.tree.map(jnp.add, params, change), state), value

        (_, after), losses = jax.jit(lambda: jax.lax.scan(step, (params, state), (jnp.arange(100), inputs)))()
        assert jax.tree.map(lambda a: a.dtype, after) == jax.tree.map(lambda a: a.dtype, state)
        sizes = [x.nbytes for x in jax.tree.leaves(after) if x.ndim]
        return np.asarray(losses), sum(sizes)

    plain, half = descend(config), descend(dataclasses.replace(config, moment_dtype="bfloat16"))
    weights = sum(x.size for x in jax.tree.leaves(target))
    assert plain[1] - half[1] == 2 * weights
    assert plain[0][-1] < 0.2 * plain[0][0]
    assert np.abs(half[0] - plain[0]).max() < 0.03 * plain[0][0]


def test_a_moment_of_another_dtype_is_refused():
    with pytest.raises(UserError, match=r"moment_dtype is 'int8', which is none of bfloat16, float32"):
        OptimConfig(moment_dtype="int8")
