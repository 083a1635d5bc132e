import dataclasses
import logging
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.clip_stream import ClipSource, ClipStreamConfig, scale_and_crop
from data_pipeline.errors import UserError
from data_pipeline.prefetch import make_stream

SHAPES = [(9, 24, 32), (5, 32, 24), (1, 40, 40), (12, 24, 24), (9, 16, 16), (1, 16, 16)]
CFG = ClipStreamConfig(crops=((5, 16, 16), (1, 24, 24)), batch_size=4, weights=(3.0, 1.0))


@pytest.fixture(scope="module")
def clips(clips_in, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_in(tmp_path_factory.mktemp("clips") / "data", SHAPES)


def test_one_shape_a_step_as_often_as_its_weight(clips: Path) -> None:
    source = ClipSource(clips, CFG)
    shapes = Counter(source[step]["video"].shape for step in range(16))
    assert shapes == {(4, 5, 16, 16, 3): 12, (4, 1, 24, 24, 3): 4}
    assert all(source[step]["video"].shape[1:4] == source.shape(step) for step in range(4))
    assert source[0]["video"].dtype == np.uint8 and source[0]["clip_ids"].dtype == np.int32


def test_each_shape_takes_every_clip_that_holds_it_once_an_epoch(clips: Path) -> None:
    source = ClipSource(clips, CFG)
    eligible = {(5, 16, 16): [0, 1, 3, 4], (1, 24, 24): [0, 1, 2, 3]}
    for step in range(12):
        assert sorted(source[step]["clip_ids"].tolist()) == eligible[source.shape(step)]
    assert len({tuple(source[step]["clip_ids"].tolist()) for step in range(12)}) > 3


def test_crops_are_parts_of_the_clip_that_move_with_time(clips: Path) -> None:
    """Clip n's red is 8 n + frame, green 4 row + frame, blue 4 column + frame."""
    source = ClipSource(clips, dataclasses.replace(CFG, crops=((5, 16, 16),), weights=(), min_scale=1.0))
    starts, tops = set(), set()
    for step in range(12):
        batch = source[step]
        for video, clip in zip(batch["video"].astype(float), batch["clip_ids"], strict=True):
            red, green, blue = (video[..., c] for c in range(3))
            start = red[0].mean() - 8 * clip
            assert np.abs(red - (8 * clip + start + np.arange(5)[:, None, None])).max() < 4
            assert np.abs(np.diff(green.mean(axis=(0, 2))) - 4).mean() < 0.6
            assert np.abs(np.diff(blue.mean(axis=(0, 1))) - 4).mean() < 0.6
            starts.add(round(start))
            tops.add(round((green[0, 0].mean() - start) / 4))
    assert len(starts) > 3 and len(tops) > 3


def test_scaling_shrinks_at_random_and_never_enlarges() -> None:
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None, None], (1, 60, 60, 3))
    slopes = []
    for seed in range(100):
        crop = scale_and_crop(np.ascontiguousarray(ramp), 20, 20, 0.0, np.random.default_rng(seed))
        assert crop.shape == (1, 20, 20, 3)
        slopes.append(np.diff(crop[0, 2:-2, 0, 0].astype(float)).mean() / 4)
    assert min(slopes) > 0.95 and max(slopes) < 3.1
    assert np.std(slopes) > 0.3
    whole = scale_and_crop(np.ascontiguousarray(ramp), 60, 60, 0.0, np.random.default_rng(0))
    assert np.array_equal(whole, ramp)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_order_is_the_same_for_any_number_of_workers_and_any_restart(clips: Path, num_workers: int) -> None:
    source = ClipSource(clips, CFG)
    with make_stream(ClipSource(clips, CFG), 2, 5, num_workers) as stream:
        for step, batch in enumerate(stream, start=2):
            assert all(np.array_equal(batch[name], source[step][name]) for name in batch)
    assert step == 6


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_together_hold_the_global_batch(clips: Path, num_hosts: int) -> None:
    rows = 4 // num_hosts
    hosts = [ClipSource(clips, CFG, rows=(n * rows, (n + 1) * rows)) for n in range(num_hosts)]
    for step in (0, 3, 100_000):
        whole = ClipSource(clips, CFG)[step]
        for name in ("video", "clip_ids"):
            assert np.array_equal(np.concatenate([host[step][name] for host in hosts]), whole[name])


def test_keeping_clips_decoded_changes_nothing(clips: Path) -> None:
    cached, uncached = ClipSource(clips, CFG), ClipSource(clips, dataclasses.replace(CFG, cache_bytes=0))
    for step in range(8):
        for other in (uncached, pickle.loads(pickle.dumps(cached))):
            assert np.array_equal(other[step]["video"], cached[step]["video"])


def test_another_rate_takes_frames_at_that_rate(clips: Path) -> None:
    source = ClipSource(clips, ClipStreamConfig(crops=((3, 16, 16),), batch_size=2, fps=4.0, min_scale=1.0))
    for step in range(4):
        for video in source[step]["video"].astype(float):
            assert np.abs(np.diff(video[..., 0].mean(axis=(1, 2))) - 2).max() < 1.5


def test_a_clip_that_does_not_decode_is_replaced_logged_once_and_counted(clips_in, tmp_path: Path, caplog) -> None:
    source = ClipSource(clips_in(tmp_path / "data", SHAPES, damaged=[1]), CFG)
    with caplog.at_level(logging.WARNING):
        batches = [source[step] for step in range(8)]
    assert all(1 not in batch["clip_ids"] for batch in batches)
    assert [int(batch["num_unreadable"]) for batch in batches] == [1] * 8
    assert len([record for record in caplog.records if "unreadable" in record.message]) == 1


def test_when_nothing_decodes_it_is_an_error(clips_in, tmp_path: Path) -> None:
    source = ClipSource(clips_in(tmp_path / "data", SHAPES, damaged=range(6)), CFG)
    with pytest.raises(UserError, match="clips in a row do not decode"):
        source[0]


def test_too_many_unreadable_clips_end_the_run(clips_in, tmp_path: Path) -> None:
    source = ClipSource(clips_in(tmp_path / "data", SHAPES, damaged=[1, 3]), CFG)
    with pytest.raises(UserError, match=r"% of \d+ clips are unreadable, more than 25%, the last being record [13] "):
        for step in range(100):
            source[step]


def test_bad_arguments_are_user_errors(clips: Path) -> None:
    with pytest.raises(UserError, match="crop of 13 frames of 16x16: the longest has 12 frames"):
        ClipSource(clips, ClipStreamConfig(crops=((13, 16, 16),), batch_size=1))
    with pytest.raises(UserError, match='no clips in its "heldout" split'):
        ClipSource(clips, CFG, "heldout")
    with pytest.raises(UserError, match="2 crops need as many weights"):
        dataclasses.replace(CFG, weights=(1.0,))
    with pytest.raises(UserError, match="crops are"):
        ClipStreamConfig(crops=(), batch_size=1)


def test_of_several_rates_each_clip_draws_one_that_it_has(tmp_path, clips_in) -> None:
    clips = clips_in(tmp_path, [(9, 16, 16)] * 12)  # 8 frames a second each; frame f is brighter by f
    source = ClipSource(clips, ClipStreamConfig(crops=((3, 16, 16),), batch_size=4, rates=(4.0, 8.0, 60.0)))
    steps: dict[int, set[int]] = {}
    for step in range(12):
        batch = source[step]
        for clip, video in zip(batch["clip_ids"].tolist(), batch["video"], strict=True):
            brighter = np.diff(video.astype(int).mean(axis=(1, 2, 3)))
            steps.setdefault(clip, set()).update(np.round(brighter).astype(int).tolist())
    assert all(len(found) == 1 for found in steps.values()), "a clip keeps its rate"
    assert set().union(*steps.values()) == {1, 2}
    with pytest.raises(UserError, match="fps None then"):
        ClipStreamConfig(crops=((3, 16, 16),), batch_size=4, fps=8.0, rates=(4.0,))
