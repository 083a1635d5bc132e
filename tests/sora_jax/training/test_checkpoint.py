import ctypes
import ctypes.util
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.parallel import make_mesh, state_shardings
from sora_jax.training.checkpoint import (
    Checkpoints,
    Retention,
    committed_steps,
    describe_run,
    find_checkpoint,
    load_params,
)
from sora_jax.training.step import TrainState


def state_of(size: int = 64, value: float = 0.0) -> TrainState:
    """A state with a known value everywhere."""
    tree = lambda: {"net": {"blocks": {"mlp_in": {"kernel": jnp.full((2, size, size), value)}}, "bias": jnp.zeros(3)}}  # noqa: E731
    count = lambda: jnp.array(value, jnp.int32)  # noqa: E731
    return TrainState(count(), tree(), tree(), {"net": (tree(), {"count": count()})}, count(), count())


def abstract_of(state: TrainState, mesh: jax.sharding.Mesh | None = None) -> TrainState:
    if mesh is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return jax.tree.map(lambda x, s: x.update(sharding=s), shapes, state_shardings(shapes, mesh))


def open_checkpoints(run_dir, keep_last=3) -> Checkpoints:
    return Checkpoints(run_dir, Retention(keep_last), describe_run({"train": {"seed": 1}}, {"data": "abc"}))


def save_all(run_dir, steps, keep_last=3, size=64) -> None:
    with open_checkpoints(run_dir, keep_last) as checkpoints:
        for step in steps:
            checkpoints.save(state_of(size, step), step, {"seed": 1})


def test_a_saved_state_comes_back_bitwise_with_its_data_and_what_made_it(tmp_path):
    save_all(tmp_path, [1, 2, 3, 4], keep_last=2)
    assert committed_steps(tmp_path / "checkpoints") == [3, 4]
    with open_checkpoints(tmp_path) as checkpoints:
        state, data = checkpoints.restore(4, abstract_of(state_of()))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(value=4))
    assert isinstance(state.opt_state["net"], tuple)
    assert data == {"step": 4, "seed": 1}
    run = load_params(tmp_path, step=3, ema=False)
    assert (run.step, run.config, run.fingerprints) == (3, {"train": {"seed": 1}}, {"data": "abc"})
    assert float(run.params["net"]["blocks"]["mlp_in"]["kernel"].max()) == 3.0


def test_a_state_comes_back_on_another_mesh(tmp_path):
    save_all(tmp_path, [5])
    mesh = make_mesh({"data": 2, "fsdp": 4})
    with open_checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(5, abstract_of(state_of(), mesh))
    kernel = state.params["net"]["blocks"]["mlp_in"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 64)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(value=5))


def test_donated_memory_never_reaches_a_checkpoint(tmp_path):
    # 3 x 8 MiB of noise: zstd keeps the writing thread busy while the next steps run in the donated memory.
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    noise = jax.random.normal(jax.random.key(0), (2, 1024, 1024))
    state = bump(jax.tree.map(lambda x: x + noise if x.ndim == 3 else x, state_of(1024)))
    saved = {}
    with open_checkpoints(tmp_path, keep_last=9) as checkpoints:
        for step in (1, 2, 3):
            saved[step] = jax.tree.map(np.array, state)
            checkpoints.save(state, step, {})
            for _ in range(10):
                state = bump(state)
            jax.block_until_ready(state)
        checkpoints.wait()
        for step, expected in saved.items():
            restored, _ = checkpoints.restore(step, abstract_of(state))
            jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_an_uncommitted_save_is_no_checkpoint(tmp_path):
    save_all(tmp_path, [1])
    half = tmp_path / "checkpoints" / "2.saving.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", half)
    assert find_checkpoint(tmp_path).name == "1"
    with pytest.raises(UserError, match=r"checkpoint 2 .* never committed .* committed are: 1"):
        find_checkpoint(tmp_path, 2)
    with pytest.raises(UserError, match=r"checkpoint 7 .* does not exist"):
        find_checkpoint(tmp_path, 7)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1
    with pytest.raises(UserError, match="no run at"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no committed checkpoint"):
        find_checkpoint(tmp_path / "empty")


def biggest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_names_the_last_good_one(tmp_path, damage):
    save_all(tmp_path, [1, 2])
    victim = biggest_file(tmp_path / "checkpoints" / "2" / "params")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1  # Orbax alone would load another number
    victim.write_bytes(content if damage == "flip" else content[:-1])
    if damage == "remove":
        victim.unlink()
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"damaged.*step 1;.*--from_step 1$"),
    ):
        checkpoints.restore(2, abstract_of(state_of()))
    with pytest.raises(UserError, match="damaged"):
        load_params(tmp_path, ema=False)
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    with pytest.raises(UserError, match="no earlier one is good"):
        load_params(tmp_path)


def test_a_checkpoint_of_another_model_is_an_error(tmp_path):
    save_all(tmp_path, [1], size=32)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"another model: .*\(2, 32, 32\) there and \(2, 64, 64\) here"),
    ):
        checkpoints.restore(1, abstract_of(state_of(64)))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB. Mounting needs rights that a container may not have."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=4m") != 0:
        pytest.skip(f"mounting a small tmpfs is not permitted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(os.fsencode(folder), 2)


def test_a_full_disk_leaves_the_last_checkpoint_good(small_disk):
    noise = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(0), x.shape) if x.ndim > 2 else x, state_of(128, 1)
    )  # zstd would make room for a constant
    with pytest.raises(UserError, match=r"disk is full.*last good checkpoint is step \d"):  # noqa: SIM117
        with open_checkpoints(small_disk, keep_last=9) as checkpoints:
            for step in range(1, 30):
                checkpoints.save(noise, step, {})
    latest = committed_steps(small_disk / "checkpoints")[-1]
    with open_checkpoints(small_disk) as checkpoints:
        state, _ = checkpoints.restore(latest, abstract_of(noise))
    jax.tree.map(np.testing.assert_array_equal, state, noise)
