import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.config import OptimConfig
from sora_jax.parallel import make_mesh, put_batch, state_shardings
from sora_jax.training.step import abstract_state, init_state, make_evaluate, make_train_step
from sora_jax.types import LossOutput, ParamGroup


def steps(prepared, batches, mesh_shape=None, devices=None):
    """The final state on the host, and each step's metrics by name."""
    task, config = prepared.task, prepared.train
    mesh = make_mesh(mesh_shape or {}, devices)
    rows = []
    with jax.set_mesh(mesh):
        shardings = state_shardings(abstract_state(task, config), mesh)
        state = init_state(task, config, shardings)
        train_step = make_train_step(task, config, shardings)
        for batch in batches:
            state, metrics = train_step(state, (), put_batch(batch, mesh))
            rows.append(dict(zip(metrics.names, np.asarray(metrics.values), strict=True)))
    return jax.device_get(state), rows


def assert_close(a, b, rtol=1e-5, atol=1e-7):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("microbatches", [2, 8])
def test_accumulation_equals_the_full_batch(toy, one_device, microbatches):
    batches = [toy.batch_at(s) for s in range(3)]  # rows weigh differently: a mean of means would be wrong
    whole, rows = steps(toy.prepare(), batches, devices=one_device)
    parts, part_rows = steps(toy.prepare(microbatches=microbatches), batches, devices=one_device)
    # Gradients agree to 1e-5; Adam divides them by their own size, which magnifies rounding near zero.
    assert_close(parts.params, whole.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(part_rows[0]["grad_norm"], rows[0]["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(part_rows[0]["loss"], rows[0]["loss"], rtol=1e-5)
    np.testing.assert_allclose(part_rows[0]["noise"], rows[0]["noise"], rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_mesh_changes_only_the_rounding(toy, one_device, optimizer):
    batches = [toy.batch_at(s) for s in range(4)]
    alone, rows = steps(toy.prepare({"optimizer": optimizer}), batches, devices=one_device)
    for shape, microbatches in (({"data": 8}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 2)):
        prepared = toy.prepare({"optimizer": optimizer}, microbatches=microbatches)
        together, mesh_rows = steps(prepared, batches, shape)
        np.testing.assert_allclose(mesh_rows[0]["loss"], rows[0]["loss"], rtol=1e-5)
        np.testing.assert_allclose(mesh_rows[0]["grad_norm"], rows[0]["grad_norm"], rtol=1e-5)
        np.testing.assert_allclose([r["loss"][0] for r in mesh_rows], [r["loss"][0] for r in rows], rtol=1e-4)
        assert_close(together.params, alone.params, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("field", ["x", "y"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(toy, one_device, field):
    good = [toy.batch_at(s) for s in range(4)]
    broken = {**good[2], field: np.full_like(good[2][field], np.nan if field == "x" else 3e38)}
    state, rows = steps(toy.prepare(), [good[0], good[1], broken, broken], devices=one_device)
    before, _ = steps(toy.prepare(), good[:2], devices=one_device)
    kept = dataclasses.replace(state, step=before.step, skipped=before.skipped, nonfinite_in_a_row=0)
    jax.tree.map(np.testing.assert_array_equal, kept, before)
    assert (state.step, state.skipped, state.nonfinite_in_a_row) == (4, 2, 2)
    assert [r["nonfinite_in_a_row"][0] for r in rows] == [0, 0, 1, 2]
    after, _ = steps(toy.prepare(), [good[0], good[1], broken, good[3]], devices=one_device)
    assert (after.skipped, after.nonfinite_in_a_row) == (1, 0)
    assert np.abs(after.params["net"]["head"]["kernel"] - before.params["net"]["head"]["kernel"]).max() > 0


def test_a_batch_that_weighs_nothing_moves_nothing_and_is_not_counted_as_broken(toy, one_device):
    """As one of which no clip can be read."""
    batch = toy.batch_at(0)
    state, rows = steps(
        toy.prepare({"weight_decay": 0.0}), [{**batch, "weight": 0 * batch["weight"]}], devices=one_device
    )
    start, _ = steps(toy.prepare({"weight_decay": 0.0}), [], devices=one_device)
    jax.tree.map(np.testing.assert_array_equal, state.params, start.params)
    assert (state.step, state.skipped, state.nonfinite_in_a_row) == (1, 0, 0)
    assert rows[0]["grad_norm"][0] == 0


def test_groups_are_updated_in_order_each_by_its_own_loss(toy, one_device):
    def own(name, other):
        def loss(params, frozen, batch, key, row_offset):
            total = ((params[name]["kernel"] - params[other]["kernel"]) ** 2).sum()
            return LossOutput(total, jnp.float32(1), {"distance": (total, jnp.float32(1))})

        return loss

    optim = OptimConfig(learning_rate=0.1, schedule="constant", warmup_steps=0, clip_norm=0.0)
    first, second = ParamGroup("a", own("a", "b"), optim), ParamGroup("b", own("b", "a"), optim)
    start = lambda key: {"a": {"kernel": jnp.zeros(3)}, "b": {"kernel": jnp.full(3, 1.0)}}  # noqa: E731
    prepared = toy.prepare()
    task = dataclasses.replace(prepared.task, init=start, groups=(first, second))
    state, rows = steps(prepared._replace(task=task), [toy.batch_at(0)], devices=one_device)
    # Adam's first step is the learning rate: a moves to 0.1; b is then 0.9 away, and moves back.
    np.testing.assert_allclose(state.params["a"]["kernel"], 0.1, rtol=1e-4)
    np.testing.assert_allclose(state.params["b"]["kernel"], 0.9, rtol=1e-4)
    np.testing.assert_allclose(rows[0]["distance"][0], 3.0, rtol=1e-5)
    np.testing.assert_allclose(rows[0]["distance/b"][0], 3 * 0.9**2, rtol=1e-4)


def test_the_average_forgets_its_start_and_then_decays_as_told(toy, one_device):
    batches = [toy.batch_at(s) for s in range(3)]
    history = [steps(toy.prepare({"ema_decay": 0.15}), batches[:n], devices=one_device)[0] for n in range(4)]
    average = history[0].params["net"]["head"]["kernel"]
    for step, state in enumerate(history[1:]):
        decay = min(0.15, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * state.params["net"]["head"]["kernel"]
        np.testing.assert_allclose(state.ema["net"]["head"]["kernel"], average, rtol=1e-5)


def test_held_out_noise_is_fixed_by_the_number_of_the_batch(toy, one_device):
    prepared = toy.prepare()
    mesh = make_mesh({}, one_device)
    shardings = state_shardings(abstract_state(prepared.task, prepared.train), mesh)
    with jax.set_mesh(mesh):
        params = init_state(prepared.task, prepared.train, shardings).params
        evaluate = make_evaluate(prepared.task, prepared.train, shardings)
        losses = [float(evaluate(params, (), toy.batch_at(0), np.int32(n))["loss"][0]) for n in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
