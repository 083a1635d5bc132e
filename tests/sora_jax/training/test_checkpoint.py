import contextlib
import ctypes
import ctypes.util
import dataclasses
import json
import os
import resource
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.parallel import make_mesh
from sora_jax.training.checkpoint import Checkpoints, Retention, committed_steps, find_checkpoint, load_params
from sora_jax.training.provenance import describe_run
from sora_jax.training.run_directory import open_run
from sora_jax.training.run_lock import GUARD, RunLock
from sora_jax.training.step_folders import discard_save
from tests.sora_jax.training.saved_states import abstract_of, biggest_file, open_checkpoints, save_all, state_of


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
    with pytest.raises(UserError, match=r"checkpoint 2 .* never committed .* committed in .* are: 1"):
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


def fill(folder) -> None:
    """Takes every byte that the disk still has."""
    with (folder / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def strangers(run) -> list[str]:
    """What is neither a committed step nor one of a run's own files."""
    known = {"checkpoints", "config.json", "run.json", GUARD, "fill"}
    folder = run / "checkpoints"
    return [p.name for p in folder.iterdir() if not p.name.isdigit()] + [
        p.name for p in run.iterdir() if p.name not in known
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads that fail later
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # find their event loop closed
def test_a_full_disk_leaves_the_last_checkpoint_good_and_nothing_half(small_disk):
    keys = jax.random.split(jax.random.key(0), 20)
    many = lambda: {"net": {f"p{i}": jax.random.normal(key, (2, 64, 64)) for i, key in enumerate(keys)}}  # noqa: E731
    noise = dataclasses.replace(state_of(8, 1), params=many(), ema=many())  # zstd would make room for a constant
    with pytest.raises(UserError, match=r"disk is full.*last good checkpoint is step \d"):  # noqa: SIM117
        with open_checkpoints(small_disk, keep_last=9) as checkpoints:
            for step in range(1, 30):
                checkpoints.save(noise, step, {})
    latest = committed_steps(small_disk / "checkpoints")[-1]
    fill(small_disk)
    about = describe_run({}, {})
    with pytest.raises(UserError, match="disk is full while opening the run"):
        open_run(small_disk, about, has_checkpoint=True)
    with pytest.raises(UserError, match="disk is full while locking the run"):
        RunLock(small_disk).__enter__()
    with pytest.raises(UserError, match="disk is full while saving"), open_checkpoints(small_disk) as checkpoints:
        checkpoints.save(noise, latest + 1, {})
    with open_checkpoints(small_disk) as checkpoints:
        state, _ = checkpoints.restore(latest, abstract_of(noise))
    jax.tree.map(np.testing.assert_array_equal, state, noise)
    assert strangers(small_disk) == []


def test_what_is_written_after_a_save_failed_is_deleted_too(tmp_path):
    late = tmp_path / "3.saving.orbax-checkpoint-tmp" / "params" / "d"
    late.mkdir(parents=True)

    def write() -> None:
        for number in range(20):
            with contextlib.suppress(OSError):  # deleted in between
                late.mkdir(parents=True, exist_ok=True)
                (late / str(number)).write_bytes(bytes(100))
            time.sleep(0.02)

    thread = threading.Thread(target=write)
    thread.start()
    discard_save(tmp_path, 3)
    thread.join()
    assert list(tmp_path.iterdir()) == []


def test_a_limit_on_files_leaves_the_last_checkpoint_good_and_nothing_half(tmp_path):
    save_all(tmp_path, [1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = jax.tree.map(lambda x: jax.random.normal(jax.random.key(0), x.shape) if x.ndim > 2 else x, state_of(128, 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match=r"saving into .* failed .*last good checkpoint is step 1$"):  # noqa: SIM117
            with open_checkpoints(tmp_path, keep_last=1) as checkpoints:
                checkpoints.save(noise, 2, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    save_all(tmp_path, [2], keep_last=1)
    assert committed_steps(tmp_path / "checkpoints") == [2]


def test_a_save_that_was_killed_is_swept_away_and_made_again(tmp_path):
    save_all(tmp_path, [1])
    folder = tmp_path / "checkpoints"
    for left in ("2.saving", "2.saving.orbax-checkpoint-tmp", "1.removing", "3.orbax-checkpoint-tmp"):
        shutil.copytree(folder / "1", folder / left)
    save_all(tmp_path, [2])
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_the_last_ones_every_nth_and_the_best_are_kept(tmp_path):
    rows = [{"step": s, "kind": "eval", "loss": abs(s - 3.0), "psnr": s % 5} for s in range(1, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = lambda *policy: sorted(set(range(1, 10)) - set(superfluous(Retention(*policy))))  # noqa: E731
    superfluous = lambda r: r.superfluous(range(1, 10), r.read_scores(tmp_path))  # noqa: E731
    assert kept(2) == [8, 9]
    assert kept(1, 4) == [4, 8, 9]
    assert kept(1, 0, "loss") == [3, 9]
    assert kept(1, 0, "psnr:max") == [9]  # 4 and 9 are alike: the newer one
    with pytest.raises(UserError, match=r"no metric 'fid' to keep the best by; they have loss, psnr"):
        kept(1, 0, "fid")
    with pytest.raises(UserError, match="'loss:best'; write NAME"):
        Retention(1, 0, "loss:best")
    policy = Retention(1, 0, "loss")
    with Checkpoints(tmp_path, policy, {}) as checkpoints:
        for step in (2, 3, 4, 5):
            checkpoints.save(state_of(8, step), step, {})
    assert committed_steps(tmp_path / "checkpoints") == [3, 5]
