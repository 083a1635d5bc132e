import dataclasses
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.caption_stream import CaptionSource, CaptionStage, CaptionStreamConfig, spread
from data_pipeline.errors import UserError
from data_pipeline.video_io import decode_record

SHAPES = [(9, 24, 32), (5, 32, 24), (1, 16, 16), (12, 24, 24), (3, 16, 40), (9, 16, 16)]
LONG = "a large red ball that moves over the table and falls down slowly"
CAPTIONS = [[("a ball", "short"), (f"{LONG} {'again ' * n}", "long")] for n in range(5)] + [[]]
SHORT_THEN_LONG = (CaptionStage(0, {"short": 1.0}), CaptionStage(3, {"long": 1.0}))
CFG = CaptionStreamConfig(canvas=(6, 24, 24), batch_size=4, max_tokens=12, stages=SHORT_THEN_LONG)


@pytest.fixture(scope="module")
def clips(clips_in, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_in(tmp_path_factory.mktemp("captioned") / "data", SHAPES, damaged=(1,), captions=CAPTIONS)


def test_a_step_is_a_function_of_its_number_whoever_computes_it(clips: Path) -> None:
    whole = CaptionSource(clips, CFG)
    halves = [CaptionSource(clips, CFG, rows=rows) for rows in ((0, 2), (2, 4))]
    uncached = pickle.loads(pickle.dumps(CaptionSource(clips, dataclasses.replace(CFG, cache_bytes=0))))
    for step in (7, 2, 3):
        batch, parts = whole[step], [half[step] for half in halves]
        for name, values in batch.items():
            together = (
                sum(part[name] for part in parts) if not values.ndim else np.concatenate([p[name] for p in parts])
            )
            assert np.array_equal(values, together) and np.array_equal(values, uncached[step][name])


def test_clips_lie_on_the_canvas_as_decoded_frames_would(clips: Path) -> None:
    source = CaptionSource(clips, CFG)
    extents = {0: (6, 18, 24), 2: (1, 16, 16), 3: (6, 24, 24), 4: (3, 10, 24)}
    seen = set()
    for step in range(4):
        batch = source[step]
        assert batch["video"].shape == (4, 6, 24, 24, 3) and batch["video"].dtype == np.uint8
        for video, extent, number in zip(batch["video"], batch["extents"], batch["clip_ids"], strict=True):
            assert tuple(extent) == extents[number]
            inside = tuple(map(slice, extent))
            assert np.array_equal(video[inside], spread(decode_record(source.reader.read(int(number)))[0], CFG.canvas))
            video[inside] = 0
            assert not video.any()
            seen.add(int(number))
    assert seen == set(extents)  # neither the damaged clip nor the one without a caption


def test_a_damaged_clip_is_replaced_and_counted(clips: Path) -> None:
    source = CaptionSource(clips, CFG)
    assert sum(int(source[step]["num_unreadable"]) for step in range(5)) == 4  # of 20 rows that go through 5 clips


def test_stages_change_the_captions_at_their_steps(clips: Path) -> None:
    source = CaptionSource(clips, CFG)
    texts = {
        step: [source.tokenizer.decode(ids[ids > 0].tolist()) for ids in source[step]["text_ids"]]
        for step in (0, 2, 3, 9)
    }
    assert all(text == "a ball" for step in (0, 2) for text in texts[step])
    assert all(text.startswith("a large") for step in (3, 9) for text in texts[step])
    held_out = CaptionSource(clips, CFG.of_last_stage())[0]
    assert held_out["is_truncated"].all() and not source[0]["is_truncated"].any()


def test_a_long_caption_is_cut_off_without_an_end(clips: Path) -> None:
    source = CaptionSource(clips, CFG)
    short, long = source[0], source[3]
    end = source.tokenizer.eos_id
    assert not short["is_truncated"].any() and long["is_truncated"].all()
    assert (long["text_lengths"] == 12).all() and not (long["text_ids"] == end).any()
    for ids, length in zip(short["text_ids"], short["text_lengths"], strict=True):
        assert ids[length - 1] == end and not ids[length:].any()


def test_captions_are_drawn_by_the_weights_of_their_sources(clips: Path) -> None:
    weights = {"short": 3.0, "long": 1.0}
    source = CaptionSource(clips, dataclasses.replace(CFG, stages=(), caption_weights=weights, batch_size=40))
    drawn = Counter(bool(cut) for step in range(10) for cut in source[step]["is_truncated"])
    assert 0.68 < drawn[False] / 400 < 0.82


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(max_tokens=1), "max_tokens is 1"),
        (dict(stages=(CaptionStage(2),)), r"\[2\], but must start at 0"),
        (dict(stages=(CaptionStage(0), CaptionStage(5), CaptionStage(5))), r"\[0, 5, 5\]"),
        (dict(caption_weights={"short": 1.0}), "both caption_weights and stages"),
        (dict(stages=(CaptionStage(0, {"short": 0.0}),)), "one above 0"),
        (dict(canvas=(0, 8, 8)), "each at least 1"),
    ],
)
def test_a_config_that_cannot_be_is_an_error(fields: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        dataclasses.replace(CFG, **fields).crops()


def test_data_without_such_captions_are_an_error(clips: Path, clips_in, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name 'shot', but .* 'short' \\(5 captions\\)"):
        CaptionSource(clips, dataclasses.replace(CFG, stages=(SHORT_THEN_LONG[0], CaptionStage(9, {"shot": 1.0}))))
    silent = clips_in(tmp_path / "silent", SHAPES[2:4], captions=[[], []])
    with pytest.raises(UserError, match="2 clips .* none has a caption"):
        CaptionSource(silent, CFG)
