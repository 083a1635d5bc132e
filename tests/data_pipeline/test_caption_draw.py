"""Captions by source: shares as weighed, renormalised over what a clip has; without weights the draw of before."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.caption_draw import CaptionDraw, check_names, count_sources, shares_by_source
from data_pipeline.doctor import examine_data
from data_pipeline.errors import UserError
from data_pipeline.permutation import key_from, uniform
from data_pipeline.plan import PackingConfig, Plan
from data_pipeline.shards import Index, ShardReader
from data_pipeline.stream import LatentSource, StreamConfig

SOURCES = ("captioner 1a2b", "captions of old", "human", "subtitles")
# human alone, human and captioner twice, captioner alone, only what no weight names, nothing
CLIPS = ((2,), (2, 0, 0), (0,), (3, 1), ())
WEIGHTS = {"captioner": 0.75, "human": 0.25}


@pytest.fixture(scope="module")
def index(index_of) -> Index:
    """2,000 clips of each of CLIPS, in turn; caption c of a clip has c + 2 tokens."""
    clips = CLIPS * 2_000
    flat = [source for clip in clips for source in clip]
    return dataclasses.replace(
        index_of([1] * len(clips), 8, 8),
        caption_offsets=np.cumsum([0, *map(len, clips)]),
        caption_tokens=np.asarray([number + 2 for clip in clips for number in range(len(clip))], np.int32),
        caption_source=np.asarray(flat, np.int32),
        caption_sources=SOURCES,
    )


def drawn(index: Index, weights: dict[str, float]) -> dict[int, list[float]]:
    """Of each of CLIPS, the share of each of its captions."""
    record = np.arange(len(index))
    caption, tokens = CaptionDraw(index, weights, 7).draw(np.zeros(len(index), np.int64), record)
    assert np.array_equal(tokens, np.where(caption < 0, 1, caption + 2))
    kinds = [caption[record % len(CLIPS) == kind] for kind in range(len(CLIPS))]
    return {kind: [float((found == c).mean()) for c in range(-1, len(CLIPS[kind]))] for kind, found in enumerate(kinds)}


def test_shares_are_the_weights_among_the_sources_that_a_clip_has(index: Index) -> None:
    shares = drawn(index, WEIGHTS)
    assert shares[0] == shares[2] == [0, 1] and shares[4] == [1]
    assert shares[1][0] == 0 and np.allclose(shares[1][1:], [0.25, 0.375, 0.375], atol=0.03)
    assert shares[3][0] == 0 and np.allclose(shares[3][1:], [0.5, 0.5], atol=0.03)  # nothing else: evenly
    never = drawn(index, {"captioner": 1.0, "human": 0.0})
    assert never[1][:2] == [0, 0] and never[0] == [0, 1]  # weight 0 is used where the clip has no other
    assert CaptionDraw(index, {"captioner": 1.0}, 7).lacks_names(np.arange(10)).sum() == 4


def test_the_longest_name_that_means_a_source_counts(index: Index) -> None:
    shares = drawn(index, {"captioner": 0.5, "captioner 1a2b": 0.0, "human": 0.5})
    assert shares[1] == [0, 1, 0, 0]


def test_without_weights_the_draw_is_even_and_the_one_of_before(index: Index) -> None:
    epoch, record = np.repeat([0, 3], len(index)), np.tile(np.arange(len(index)), 2)
    count = np.diff(index.caption_offsets)[record]
    expected = np.floor(uniform(key_from(7, "caption"), epoch, record) * count).astype(np.int64)
    expected[count == 0] = -1
    assert np.array_equal(CaptionDraw(index, {}, 7).draw(epoch, record)[0], expected)


def test_the_plan_counts_the_drawn_captions_tokens_and_packs_any_part_alike(index: Index) -> None:
    cfg = PackingConfig(256, 64, 16, 4, caption_weights=WEIGHTS)
    plan, again = (Plan(index, cfg, 0, "f") for _ in range(2))
    for step in (9, 2):
        assert plan.row(step, 1) == again.row(step, 1)
    window = plan.window(0)
    assert np.array_equal(window.text, np.where(window.caption < 0, 1, window.caption + 2))
    shares = shares_by_source(index, window.record, window.caption)
    expected = {"captioner 1a2b": 0.35, "human": 0.25, "no caption": 0.2, "captions of old": 0.1, "subtitles": 0.1}
    assert shares == {name: pytest.approx(share, abs=0.05) for name, share in expected.items()}
    assert plan.report()["without_weighted_caption"] == 2_000


def test_unknown_names_and_old_data_sets_are_user_errors(index: Index) -> None:
    with pytest.raises(UserError, match=r"name 'capt', but .* are: 'captioner 1a2b' \(6000 captions\), 'human' \(4000"):
        check_names({"capt": 1.0}, [index])
    old = dataclasses.replace(index, caption_source=None, caption_sources=())
    CaptionDraw(old, {}, 7)
    with pytest.raises(UserError, match="does not say who wrote the captions"):
        CaptionDraw(old, WEIGHTS, 7)
    for weights in ({"human": -1.0}, {"human": 0.0}, {"human": float("nan")}):
        with pytest.raises(UserError, match="0 or more, and one above 0"):
            PackingConfig(64, 8, 4, 2, caption_weights=weights)


def test_sources_are_in_the_index_and_a_data_set_without_them_still_opens(latents_in, tmp_path: Path) -> None:
    directory = latents_in(tmp_path / "data", 12)
    cfg = StreamConfig(row_tokens=96, row_text=48, row_segments=6, batch_rows=2)
    named = dataclasses.replace(cfg, caption_weights={"human": 1.0})
    before = LatentSource(directory, named)[3]
    index = ShardReader(directory).index
    assert count_sources(index) == count_sources(index, "train") == {"human": len(index.caption_tokens)}
    assert examine_data(directory, named, 10)["captions"]["by_source"] == {"human": len(index.caption_tokens)}
    path = directory / "index.npz"
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays if not name.startswith("caption_source")}
    np.savez(path, **kept)
    after = LatentSource(directory, cfg)[3]
    assert all(np.array_equal(after[name], before[name]) for name in before)  # of one source, weights change nothing
    with pytest.raises(UserError, match="Build it again"):
        LatentSource(directory, named)
