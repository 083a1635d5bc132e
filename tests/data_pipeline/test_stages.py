"""Mixtures and stages: exact shares, the same on any hosts and workers and after any restart, and one data set alone is
the stream of before."""

import dataclasses
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.prefetch import make_stream
from data_pipeline.stages import Member, Stage, StagedSource, check_stages, fingerprint_of
from data_pipeline.stream import LatentSource, StreamConfig

SMALL = StreamConfig(row_tokens=96, row_text=48, row_segments=6, batch_rows=4, window_steps=2)
LARGE = StreamConfig(row_tokens=192, row_text=96, row_segments=12, batch_rows=8, window_steps=2)
NUM_FIRST = 50


@pytest.fixture(scope="module")
def paths(latents_in, tmp_path_factory) -> tuple[str, str]:
    """Two data sets of one autoencoder and one tokenizer: 40 + 10 and 24 + 0 clips."""
    root = tmp_path_factory.mktemp("mixture")
    first = latents_in(root / "first", NUM_FIRST - 10, 10)
    second = latents_in(root / "second", 24, seed=1)
    share_tokenizer(first, second)
    return str(first), str(second)


def share_tokenizer(one: Path, other: Path) -> None:
    (other / "tokenizer.model").write_bytes((one / "tokenizer.model").read_bytes())
    set_manifest(other, tokenizer_fingerprint=json.loads((one / "manifest.json").read_text())["tokenizer_fingerprint"])


def set_manifest(directory: Path, **fields) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def stages(paths) -> tuple[Stage, ...]:
    """Three of four rows from the first data set; from step 5 on larger rows, half of the first."""
    mixture = (Member(paths[0], 3.0), Member(paths[1], 1.0))
    even = (Member(paths[0]), Member(paths[1]))
    return Stage(0, mixture, SMALL, 256), Stage(5, even, LARGE, 1024), Stage(9, (Member(paths[1]),), LARGE, 1024)


@pytest.fixture(scope="module")
def source(stages) -> StagedSource:
    return StagedSource(stages)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_one_data_set_in_one_stage_is_the_stream_of_before(paths) -> None:
    plain = LatentSource(paths[0], SMALL)
    staged = StagedSource([Stage(0, (Member(paths[0], 7.0),), SMALL)])
    for step in (0, 3, 1_000_001):
        assert same(staged[step], plain[step])
    assert staged.spec() == plain.spec()
    assert fingerprint_of(staged.manifests) == plain.reader.manifest.fingerprint
    assert [same(a, b) for a, b in zip(staged.batches_of_stage(0, 2), (plain[0], plain[1]), strict=True)] == [True] * 2


def test_rows_come_from_the_data_sets_as_their_weights_say_and_tell_which(source: StagedSource) -> None:
    def first_share(steps: range) -> tuple[int, int]:
        ids = [row[row >= 0] for step in steps for row in source[step]["sample_ids"]]
        assert all(len(set(row >= NUM_FIRST)) == 1 for row in ids)  # a row is of one data set
        return sum(row[0] < NUM_FIRST for row in ids), len(ids)

    assert first_share(range(5)) == (15, 20)
    assert first_share(range(5, 9)) == (16, 32)
    assert first_share(range(9, 12)) == (0, 24)


def test_every_data_set_goes_through_its_own_epochs(paths) -> None:
    """With weights that are far from their sizes, each clip comes as often as the others of its data set."""
    cfg = dataclasses.replace(SMALL, batch_rows=6)
    source = StagedSource([Stage(0, (Member(paths[0], 1.0), Member(paths[1], 2.0)), cfg)])
    seen = Counter(i for step in range(40) for i in source[step]["sample_ids"].ravel().tolist() if i >= 0)
    for records in (range(NUM_FIRST - 10), range(NUM_FIRST, NUM_FIRST + 24)):
        counts = [seen[record] for record in records]
        assert max(counts) - min(counts) <= 0.15 * max(counts) + 2
    assert set(seen) <= {*range(NUM_FIRST - 10), *range(NUM_FIRST, NUM_FIRST + 24)}  # none held out


def test_each_stage_has_its_rows_and_its_shift(source: StagedSource, stages) -> None:
    for step, number in ((0, 0), (4, 0), (5, 1), (8, 1), (9, 2), (1_000_000, 2)):
        batch = source[step]
        assert source.stage_at(step) == number
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == source.spec(number)
        assert batch["tokens"].shape[:2] == (stages[number].stream.batch_rows, stages[number].stream.row_tokens)
        assert int(batch["reference_tokens"]) == stages[number].reference_tokens
    assert not np.array_equal(source[5]["sample_ids"], source[9]["sample_ids"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_is_the_same_with_any_workers_and_after_a_restart_in_any_stage(source, num_workers) -> None:
    with make_stream(source, 3, 8, num_workers) as stream:
        assert all(same(batch, source[step]) for step, batch in enumerate(stream, 3))


def test_hosts_together_hold_the_global_batch_in_every_stage(source: StagedSource, stages) -> None:
    *_, scans = source.__reduce__()[1]  # what a worker gets too
    for count in (2, 4):
        shares = [stage.stream.batch_rows // count for stage in stages]
        rows = [[(n * share, (n + 1) * share) for share in shares] for n in range(count)]
        hosts = [StagedSource(stages, "train", own, scans) for own in rows]
        for step in (4, 5, 9):
            parts, whole = [host[step] for host in hosts], source[step]
            for name in whole.keys() - {"num_unreadable", "reference_tokens"}:
                assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_a_pickled_source_is_the_same_source(source: StagedSource) -> None:
    again = pickle.loads(pickle.dumps(source))
    assert all(same(again[step], source[step]) for step in (1, 6, 10))


def test_held_out_clips_are_those_of_the_stage(stages) -> None:
    heldout = StagedSource(stages, "heldout")
    first, second, third = (list(heldout.batches_of_stage(step, 2)) for step in (4, 5, 9))
    assert [len(batch["tokens"]) for batch in (*first, *second)] == [4, 4, 8, 8] and third == []
    ids = {i for batch in (*first, *second) for i in batch["sample_ids"].ravel().tolist()}
    assert ids == {-1, *range(NUM_FIRST - 10, NUM_FIRST)}  # the other data set has none


def test_stages_and_mixtures_that_cannot_be_are_user_errors(paths, latents_in, tmp_path) -> None:
    one, both = (Member(paths[0]),), (Member(paths[0]), Member(paths[1]))
    for starts in ((), (1,), (0, 5, 5), (0, 5, 4)):
        with pytest.raises(UserError, match="the first must start at 0"):
            check_stages([Stage(start, one, SMALL) for start in starts])
    with pytest.raises(UserError, match="is 2 times in the mixture from step 0 on"):
        check_stages([Stage(0, (*both, Member(paths[1], 2.0)), SMALL)])
    with pytest.raises(UserError, match="no clip fits into a row"):  # found before step 0, not at step 5
        StagedSource([Stage(0, both, SMALL), Stage(5, both, dataclasses.replace(SMALL, row_tokens=3))])
    foreign = latents_in(tmp_path / "foreign", 6, fingerprint="another")
    with pytest.raises(UserError, match="autoencoder_fingerprint is ae in .* and another in"):
        StagedSource([Stage(0, (Member(paths[0]), Member(str(foreign))), SMALL)])
    words = latents_in(tmp_path / "words", 6, seed=5)
    with pytest.raises(UserError, match="tokenizer_fingerprint is .* in .* and .*output.tokenizer of data curate"):
        StagedSource([Stage(0, one, SMALL), Stage(5, (Member(str(words)),), SMALL)])


def test_names_of_sources_are_looked_for_in_all_data_sets_of_a_mixture(paths) -> None:
    cfg = dataclasses.replace(SMALL, caption_weights={"human": 1.0})
    StagedSource([Stage(0, (Member(paths[0]), Member(paths[1])), cfg)])
    unknown = dataclasses.replace(SMALL, caption_weights={"robot": 1.0})
    with pytest.raises(UserError, match="name 'robot', but no caption is of that source"):
        StagedSource([Stage(0, (Member(paths[0]), Member(paths[1])), unknown)])


def test_held_out_clips_need_not_have_every_source_of_the_mixture(paths, latents_in, tmp_path) -> None:
    other = latents_in(tmp_path / "other", 24, seed=1, source="alt")
    share_tokenizer(Path(paths[0]), other)
    cfg = dataclasses.replace(SMALL, caption_weights={"human": 0.5, "alt": 0.5})
    stages = [Stage(0, (Member(paths[0]), Member(str(other))), cfg)]
    StagedSource(stages)
    assert len(list(StagedSource(stages, "heldout").batches_of_stage(0, 1))) == 1  # of "human" alone
    with pytest.raises(UserError, match="name 'alt', but no caption is of that source"):
        StagedSource([Stage(0, (Member(paths[0]),), cfg)])
