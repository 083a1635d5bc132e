"""Pairs of captions as rows: what a row holds, in which order, and what is left out."""

import dataclasses
import hashlib
import pickle

import numpy as np
import pytest

from data_pipeline.caption_pairs import PairConfig, PairSource
from data_pipeline.doctor import report_sections
from data_pipeline.doctor_pairs import examine_pairs
from data_pipeline.errors import UserError
from data_pipeline.page import render_page
from data_pipeline.records import Caption, ClipRecord
from data_pipeline.shards import Index, ShardReader, ShardWriter
from data_pipeline.tokenizer import Tokenizer

NUM = 12


def write_captions(folder, captions, splits=("train",)):
    """A clip for each list of (text, source); splits take turns."""
    tokenizer = Tokenizer.train([text for texts in captions for text, _ in texts] * 3)
    writer = ShardWriter(folder, "clip", tokenizer=tokenizer)
    for n, texts in enumerate(captions):
        writer.write(ClipRecord(
            clip_id=f"clip{n}", source_id=f"{n}.mp4", group_id=f"g{n}", split=splits[n % len(splits)], video=b"v",
            media_type="video/mp4", start_s=0.0, end_s=1.0, fps=8.0, num_frames=8, height=16, width=16,
            crop=(0, 0, 16, 16), colour={}, license="CC0-1.0", checksum=hashlib.sha256(b"v").hexdigest(),
            captions=tuple(Caption(text, source, "en", 9) for text, source in texts),
        ))  # fmt: skip
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Clips 0 to 11 with "thing N" and "a long thing N"; 3 lacks the long one, 5 has two, 7's is too long."""
    longs = {n: [f"a long thing {n}"] for n in range(NUM)} | {3: [], 5: ["a long thing 5", "a wide thing 5"]}
    longs[7] = ["a long thing 7" * 20]
    captions = [[(f"thing {n}", "short"), *((text, "long") for text in longs[n])] for n in range(NUM)]
    return write_captions(tmp_path_factory.mktemp("pairs"), captions)


def config(**fields):
    return PairConfig(**{"batch_size": 4, "short_source": "short", "long_source": "long", "long_tokens": 30, **fields})


def texts(source, batch):
    """(short, long) of each row, read back from its arrays."""
    found, end = [], source.tokenizer.eos_id
    names = ("ids", "targets", "segment_ids", "loss_mask")
    for ids, targets, live, mask in zip(*(batch[name].tolist() for name in names), strict=True):
        count = sum(live)
        assert ids[1:count] == targets[: count - 1] and targets[count - 1] == end == ids[0]
        first = mask.index(1)
        assert ids[first] == end and set(mask[first:count]) == {1.0} and sum(mask) == count - first
        found.append((source.tokenizer.decode(ids[1:first]), source.tokenizer.decode(targets[first : count - 1])))
    return found


def test_the_doctor_says_which_clips_have_a_pair(pairs):
    report = examine_pairs(pairs, config(leave_out=("thing 9",)), 5)
    why = {line["record"]: line["why"] for line in report["untrained"]}
    left_out = "it has no caption by each of the two sources, or leave_out names it"
    assert why == {3: left_out, 7: "a caption by one of the two sources is too long", 9: left_out}
    run = report["run"]
    assert (run["clips"], run["steps_per_epoch"], run["epochs"]) == (NUM - 3, (NUM - 3) / 4, 5 * 4 / (NUM - 3))
    assert report["problems"] == [] and "3 of 12 train clips are never visited" in report["warnings"]
    assert "leave out names it" in render_page("title", "", report_sections(report)).replace("_", " ")
    (problem,) = examine_pairs(pairs, config(long_source="nobody"), 5)["problems"]
    assert problem.startswith("the run would train on nothing: ") and "none of 12 train records" in problem


def test_a_row_says_what_follows_what_and_counts_the_long_text_alone(pairs):
    source = PairSource(pairs, config())
    seen = [pair for step in range(30) for pair in texts(source, source[step])]
    for short, long in seen:
        assert long in (f"a long {short}", f"a wide {short}")
    assert {short for short, _ in seen} == {f"thing {n}" for n in range(NUM)} - {"thing 3", "thing 7"}
    assert {long for short, long in seen if short == "thing 5"} == {"a long thing 5", "a wide thing 5"}


def test_rows_depend_on_the_step_alone(pairs):
    whole, part = PairSource(pairs, config()), pickle.loads(pickle.dumps(PairSource(pairs, config(), rows=(1, 3))))
    for step in (7, 0):
        for name, array in part[step].items():
            np.testing.assert_array_equal(array, whole[step][name] if not array.ndim else whole[step][name][1:3])
    other = PairSource(pairs, config(seed=1))
    assert any((other[step]["ids"] != whole[step]["ids"]).any() for step in range(3))


def test_phrases_that_are_left_out_are_not_trained_on(pairs):
    source = PairSource(pairs, config(leave_out=("thing 2", "thing 9")))
    assert not {"thing 2", "thing 9"} & set(source.short_texts())
    seen = {short for step in range(10) for short, _ in texts(source, source[step])}
    assert "thing 9" not in seen and "thing 8" in seen


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"long_source": "longest"},
            "none of 12 train records .*'longest'; it has captions by 'long' .12., 'short' .12.",
        ),
        ({"long_tokens": 2}, "11 train records in a row, of 11 with both .*: raise short_tokens or long_tokens"),
        ({"short_tokens": 0}, "short_tokens is 0"),
        ({"short_source": "long"}, "both 'long'"),
    ],
)
def test_data_without_pairs_are_refused_at_once(pairs, fields, message):
    with pytest.raises(UserError, match=message):
        PairSource(pairs, config(**fields))
    with pytest.raises(UserError, match='no records in its "heldout" split'):
        PairSource(pairs, config(), "heldout")


def test_few_clips_with_both_captions_are_enough_and_a_name_means_what_begins_with_it(tmp_path):
    captions = [[(f"thing {n}", "captioner 1a2b"), (f"other {n}", "human")] for n in range(200)]
    for n in range(0, 200, 20):
        captions[n].append((f"a long thing {n}", "captioner long 1a2b"))
    source = PairSource(
        write_captions(tmp_path, captions), config(short_source="captioner", long_source="captioner long")
    )
    seen = {pair for step in range(20) for pair in texts(source, source[step])}
    assert seen == {(f"thing {n}", f"a long thing {n}") for n in range(0, 200, 20)}


def test_an_index_without_sources_is_refused(pairs, monkeypatch):
    without = dataclasses.replace(ShardReader(pairs).index, caption_source=None, caption_sources=())
    monkeypatch.setattr(Index, "load", lambda path: without)
    with pytest.raises(UserError, match="does not say who wrote the captions.*Build it again"):
        PairSource(pairs, config())


def test_swapped_rows_change_what_both_texts_share_alike_and_nothing_else(tmp_path):
    captions = [[(f"thing {n}", "short"), (f"a long thing {n}", "long")] for n in range(40)]
    folder = write_captions(tmp_path, captions, ("train", "heldout"))
    plain, swapped = (PairSource(folder, config(swap_rate=rate)) for rate in (0.0, 1.0))
    num_changed = 0
    for step in range(10):
        for (short, long), (other_short, other_long) in zip(
            *(map(ids_of, batch["ids"], batch["loss_mask"]) for batch in (plain[step], swapped[step])), strict=True
        ):
            become = {}
            for token, other in zip(short + long, other_short + other_long, strict=True):
                assert become.setdefault(token, other) == other
            shared = set(short) & set(long)
            assert shared and all(token == other for token, other in become.items() if token not in shared)
            num_changed += sum(token != other for token, other in become.items())
    assert num_changed > 40
    plain, swapped = (PairSource(folder, config(swap_rate=rate), "heldout") for rate in (0.0, 1.0))
    for step in range(10):
        np.testing.assert_array_equal(plain[step]["ids"], swapped[step]["ids"])


def ids_of(ids, mask):
    """The ids of both texts of a row."""
    first, count = int(np.argmax(mask)), int(np.flatnonzero(mask)[-1]) + 1
    return ids[1:first].tolist(), ids[first + 1 : count].tolist()
