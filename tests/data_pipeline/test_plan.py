from collections import Counter

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.plan import PackingConfig, Plan


def mixed_index(index_of, num_clips: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    frames = np.clip(np.exp(rng.normal(2.3, 0.8, num_clips)).astype(int), 1, 60)
    sizes = rng.choice([8, 12, 16, 20], (2, num_clips))
    return index_of(frames, sizes[0], sizes[1], rng.integers(1, 40, num_clips))


CFG = PackingConfig(row_tokens=4096, row_text=512, row_segments=24, batch_rows=4)


def row_totals(plan: Plan, index, step: int, row: int) -> tuple[int, int, int]:
    """(tokens, text tokens, samples) of a row, from the index alone."""
    placements = plan.row(step, row)
    _, ph, pw = plan.cfg.patch_size
    tokens = sum(p.frames * (index.height[p.record] // ph) * (index.width[p.record] // pw) for p in placements)
    text = sum(
        min(plan.cfg.caption_limit, index.caption_tokens[index.caption_offsets[p.record] + p.caption])
        if p.caption >= 0
        else 1
        for p in placements
    )
    return int(tokens), int(text), len(placements)


@pytest.mark.parametrize("durations", ["full", "drawn"])
@pytest.mark.parametrize("num_clips", [1, 2, 3, 7, 40, 100, 1500])
def test_every_row_of_every_step_holds_something_and_no_capacity_is_exceeded(index_of, num_clips, durations) -> None:
    index = mixed_index(index_of, num_clips)
    cfg = PackingConfig(1024, 128, 12, 3, durations=durations)
    plan = Plan(index, cfg, 0, "fingerprint")
    for step in range(plan.window_steps + 2):
        for row in range(3):
            tokens, text, samples = row_totals(plan, index, step, row)
            assert 1 <= tokens <= 1024 and text <= 128 and 1 <= samples <= 12
            for placement in plan.row(step, row):
                assert 1 <= placement.frames <= index.frames[placement.record]


def test_every_clip_comes_once_an_epoch(index_of) -> None:
    """With full durations: window by window, each clip comes as often as the others, up to the unfinished epoch."""
    index = mixed_index(index_of, 3_000)
    plan = Plan(index, CFG, 0, "fingerprint")
    counts: Counter[int] = Counter()
    left_out = 0
    for number in range(12):
        window = plan.window(number)
        counts.update(window.record.tolist())
        left_out += len(window.left_out)
        epochs = (number + 1) * plan.clips_per_window / 3_000
        waiting = sum(max(0, int(epochs) - counts[record]) for record in range(3_000))
        assert waiting <= left_out + 0.01 * plan.clips_per_window
        assert max(counts.values()) <= int(epochs) + 1
    assert left_out <= 0.01 * counts.total()


@pytest.mark.parametrize("durations", ["full", "drawn"])
def test_rows_are_full(index_of, durations) -> None:
    index = mixed_index(index_of, 20_000)
    cfg = PackingConfig(8192, 2048, 64, 16, durations=durations)
    report = Plan(index, cfg, 0, "fingerprint").report()
    assert report["padding"] < 0.015
    assert report["left_out"] <= 0.01 and report["cut_to_fit"] <= 0.01
    assert report["binding"] == "row_tokens"
    assert report["imbalance"] < 1.05


def test_clips_of_one_size_that_fill_a_row_exactly_leave_no_gap_and_nothing_out(index_of) -> None:
    plan = Plan(index_of([3] * 600, 4, 4), PackingConfig(192, 96, 6, 16, patch_size=(1, 1, 1)), 0, "f")
    report = plan.report(num_windows=3)
    assert report["padding"] == report["left_out"] == 0 and report["segments_per_row"] == 4
    assert plan.clips_per_window == 576
    records = np.concatenate([plan.window(w).record for w in range(25)])  # 24 epochs of 600
    assert set(np.bincount(records).tolist()) == {24}


def test_text_or_segments_may_bind(index_of) -> None:
    index = mixed_index(index_of, 2_000)
    text = Plan(index, PackingConfig(16_384, 160, 64, 4), 0, "f").report()
    assert text["binding"] == "row_text" and text["text_padding"] < 0.04
    segments = Plan(index, PackingConfig(8192, 2048, 3, 4), 0, "f").report()
    assert segments["binding"] == "row_segments" and segments["segments_per_row"] > 2.97


def test_rows_are_a_pure_function_of_fingerprint_seed_and_step(index_of) -> None:
    index = mixed_index(index_of, 2_000)
    plan = Plan(index, CFG, 0, "fingerprint")
    rows = {(step, row): plan.row(step, row) for step in (0, 57, 58, 300) for row in range(4)}
    again = Plan(index, CFG, 0, "fingerprint", clips_per_window=plan.clips_per_window)
    for step, row in sorted(rows, reverse=True):
        assert again.row(step, row) == rows[step, row]
    assert Plan(index, CFG, 1, "fingerprint").row(0, 0) != rows[0, 0]
    assert Plan(index, CFG, 0, "other").row(0, 0) != rows[0, 0]


def test_drawn_prefixes_are_uniform_and_images_come_as_often_as_asked(index_of) -> None:
    index = index_of([10] * 4_000, 8, 8)
    plan = Plan(index, PackingConfig(4096, 512, 99, 4, durations="drawn", min_frames=3), 0, "fingerprint")
    counts = np.bincount(np.concatenate([plan.window(w).frames for w in range(3)]), minlength=11)
    assert np.abs(counts[3:] / counts.sum() - 1 / 8).max() < 0.02
    assert counts[:3].sum() < 0.01 * counts.sum()  # only what was cut to fit
    cfg = PackingConfig(4096, 512, 99, 4, durations="drawn", min_frames=3, image_fraction=0.25)
    images = np.concatenate([window.frames for window in map(Plan(index, cfg, 0, "f").window, range(3))]) == 1
    assert abs(images.mean() - 0.25) < 0.02


def test_captions_are_drawn_evenly_and_counted(index_of) -> None:
    index = index_of([2] * 900, 8, 8)
    captions = np.arange(901, dtype=np.int64) * 3
    index = type(index)(
        **{**vars(index), "caption_offsets": captions, "caption_tokens": np.tile([2, 5, 99], 900).astype(np.int32)}
    )
    plan = Plan(index, PackingConfig(512, 100, 20, 4, max_caption_tokens=9), 0, "fingerprint")
    window = plan.window(0)
    assert np.abs(np.bincount(window.caption, minlength=3) / len(window.caption) - 1 / 3).max() < 0.05
    assert np.array_equal(window.text, np.array([2, 5, 9])[window.caption])
    assert plan.report()["truncated_captions"] == 900


def test_clips_longer_than_a_row_are_cut_and_frames_larger_than_a_row_are_left_out(index_of) -> None:
    index = index_of([100, 3, 1], [8, 8, 64], [8, 8, 64])
    plan = Plan(index, PackingConfig(256, 64, 8, 1), 0, "fingerprint")
    report = plan.report()
    assert (report["cut_to_row"], report["frame_too_large_or_small"]) == (1, 1)
    placed = [p for step in range(20) for p in plan.row(step, 0)]
    assert {p.record: p.frames for p in placed} == {0: 16, 1: 3}


def test_steps_of_similar_rows(index_of) -> None:
    index = mixed_index(index_of, 20_000)
    plan = Plan(index, PackingConfig(8192, 2048, 64, 64, window_steps=32), 0, "fingerprint")
    cost = plan.window(0).row_sums(plan.window(0).tokens.astype(float) ** 2).reshape(32, 64)
    assert (cost.max(axis=1) / cost.mean(axis=1)).mean() < 1.05
    assert cost.max() / cost.mean() > 1.2  # what unsorted steps would wait for


def test_millions_of_clips_start_at_any_step_with_two_windows(index_of, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2_000_000  # ten million, with seconds and bytes: `sora-jax bench packing --synthetic_lengths 10000000`
    index = index_of(np.random.default_rng(0).integers(1, 40, count), 16, 16)
    plan, fitted = Plan(index, PackingConfig(65_536, 8192, 256, 8), 0, "fingerprint"), []
    fit = Plan._fit
    monkeypatch.setattr(Plan, "_fit", lambda self, samples, *rest: fitted.append(samples) or fit(self, samples, *rest))
    assert plan.row(1_000_000, 7)
    assert len(fitted) <= 2 and sum(len(samples.clip) for samples in fitted) < 3 * plan.clips_per_window


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_tokens": 0}, "row_tokens is 0"),
        ({"patch_size": (2, 2, 2)}, "a patch is in one frame"),
        ({"durations": "short"}, "choose one of full, drawn"),
        ({"image_fraction": 1.5}, "between 0 and 1"),
        ({"image_fraction": 0.5}, "durations='drawn'"),
        ({"window_steps": -1}, "0 .automatic. or more"),
    ],
)
def test_bad_configs_are_user_errors(change, message) -> None:
    with pytest.raises(UserError, match=message):
        PackingConfig(**{"row_tokens": 64, "row_text": 8, "row_segments": 4, "batch_rows": 2, **change})


def test_rows_that_no_clip_fits_are_a_user_error(index_of) -> None:
    with pytest.raises(UserError, match="256 tokens with patch_size .* row_tokens is 255"):
        Plan(index_of([3, 3], 32, [32, 64]), PackingConfig(255, 64, 8, 1), 0, "fingerprint")
    with pytest.raises(UserError, match='no clips in its "heldout" split'):
        Plan(index_of([3, 3], 32, 32), CFG, 0, "fingerprint", "heldout")
