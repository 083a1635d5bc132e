"""Recaptioning without a network: what is added, what is left alone, and what a kill leaves."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from data_pipeline.caption_staging import CaptionStaging
from data_pipeline.errors import UserError
from data_pipeline.latents import WindowConfig, encode_latents
from data_pipeline.recaption import in_process, recaption, show
from data_pipeline.recaption_latents import recaption_latents
from data_pipeline.records import Caption
from data_pipeline.shards import ShardReader
from tests.data_pipeline.test_latents import ENCODING

SHAPES = [(5, 16, 24), (9, 16, 24), (1, 16, 16), (21, 24, 16), (5, 16, 16)]


LOOK = partial(show, num_frames=3)


def number_of(frames):
    return round(float(frames[0, ..., 0].mean()) / 8)


class Counting:
    """Says which clip it sees, and keeps what it was asked for."""

    def __init__(self, stop_after=None, **fields):
        self.seen, self.stop_after = [], stop_after
        self.captioner = in_process(self.captions, "counter", LOOK, batch_size=1, concurrency=1, **fields)

    def captions(self, clips):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyError("killed")
        self.seen += [number_of(frames) for frames in clips]
        return [f" clip\nnumber {number_of(frames)} of {len(frames)} frames " for frames in clips]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_each_record_gets_one_more_caption_behind_its_own(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)
    counting = Counting()
    result = recaption(clips, tmp_path / "out", counting.captioner)
    before, after = ShardReader(clips), ShardReader(tmp_path / "out", kind="clip")
    assert (result["clips"], result["captions"], result["uncaptioned"], result["asked"]) == (5, 5, 0, 5)
    for n, (frames, _, _) in enumerate(SHAPES):
        old, new = before.read(n), after.read(n)
        added = Caption(f"clip number {n} of {min(frames, 3)} frames", "counter", "und", new.captions[-1].num_tokens)
        assert new == replace(old, captions=(*old.captions, added))
        assert after.index.caption_tokens[2 * n + 1] == added.num_tokens > 1
    assert contents(clips)["tokenizer.model"] == contents(tmp_path / "out")["tokenizer.model"]
    again = recaption(clips, tmp_path / "out", counting.captioner)
    assert again["fingerprint"] == result["fingerprint"] and len(counting.seen) == 5


def test_a_killed_job_goes_on_and_ends_in_the_same_bytes(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)
    recaption(clips, tmp_path / "whole", Counting().captioner)
    killed = Counting(stop_after=2)
    with pytest.raises(KeyError):
        recaption(clips, tmp_path / "out", killed.captioner)
    staged = tmp_path / "out/.recaption/captions.jsonl"
    staged.write_bytes(staged.read_bytes()[:-4])  # as if the kill had cut the last line short
    resumed = Counting()
    result = recaption(clips, tmp_path / "out", resumed.captioner)
    assert (killed.seen, resumed.seen) == ([0, 1], [1, 2, 3, 4])
    assert (result["resumed"], result["asked"]) == (1, 4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KILLED = """
import sys, time
from pathlib import Path
from data_pipeline.recaption import in_process, recaption, show
def captions(clips):
    time.sleep(0.05)
    with open(sys.argv[3], "a") as file:
        print(len(clips[0]), file=file)
    return [f"{len(frames)} frames" for frames in clips]
recaption(Path(sys.argv[1]), Path(sys.argv[2]), in_process(captions, "slow", show, batch_size=1, concurrency=1))
"""


def test_a_process_that_is_killed_asks_for_nothing_twice(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", [(n + 1, 16, 16) for n in range(12)])
    command = [sys.executable, "-c", KILLED, str(clips), str(tmp_path / "out"), str(tmp_path / "asked")]
    process = subprocess.Popen(command)
    staged = tmp_path / "out/.recaption/captions.jsonl"
    while not staged.exists() or staged.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
    process.kill()
    process.wait()
    done = staged.read_bytes().count(b"\n")
    subprocess.run(command, check=True)
    asked = [int(line) for line in (tmp_path / "asked").read_text().split()]
    assert sorted(set(asked)) == list(range(1, 13))
    assert len(asked) - 12 <= 1 and asked.count(1) == 1  # at most the one that was under way
    assert 4 <= done < 12 and ShardReader(tmp_path / "out").manifest.num_captions == 24


def test_a_clip_that_does_not_decode_keeps_its_captions_and_is_listed(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES, damaged=[1, 3])
    result = recaption(clips, tmp_path / "out", Counting().captioner, max_failures=1)
    lines = [json.loads(line) for line in (tmp_path / "out/uncaptioned.jsonl").read_text().splitlines()]
    assert [line["clip_id"] for line in lines] == ["clip1", "clip3"] and all(line["reason"] for line in lines)
    assert (result["captions"], result["uncaptioned"]) == (3, 2)
    reader = ShardReader(tmp_path / "out")
    assert [len(reader.read(n).captions) for n in range(5)] == [2, 1, 2, 1, 2]


def test_a_damaged_record_is_left_out_and_listed(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)
    (shard,) = clips.glob("train-*")
    whole = bytearray(shard.read_bytes())
    whole[whole.index(b"clip2")] ^= 1
    shard.write_bytes(whole)
    result = recaption(clips, tmp_path / "out", Counting().captioner, max_failures=1)
    (line,) = [json.loads(line) for line in (tmp_path / "out/uncaptioned.jsonl").read_text().splitlines()]
    assert line["record"] == 2 and line["left_out"] and "damaged" in line["reason"]
    assert (result["clips"], result["captions"], result["uncaptioned"], result["left_out"]) == (4, 4, 1, 1)
    reader = ShardReader(tmp_path / "out")
    assert [reader.read(n).clip_id for n in range(4)] == ["clip0", "clip1", "clip3", "clip4"]


def test_a_caption_of_the_same_source_is_not_doubled(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)
    recaption(clips, tmp_path / "two", Counting().captioner, limit=2)
    rest = Counting()
    result = recaption(tmp_path / "two", tmp_path / "all", rest.captioner)
    assert rest.seen == [2, 3, 4] and (result["already_there"], result["captions"]) == (2, 3)
    reader = ShardReader(tmp_path / "all")
    assert [[c.source for c in reader.read(n).captions] for n in range(5)] == [["human", "counter"]] * 5


def test_failures_in_a_row_end_the_job_and_keep_what_is_there(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)
    sometimes = in_process(lambda c: ["fine" if number_of(c[0]) < 2 else " "], "s", LOOK, batch_size=1, concurrency=1)
    with pytest.raises(UserError, match=r"2 clips in a row .* answer is empty; 2 captions are kept"):
        recaption(clips, tmp_path / "out", sometimes, max_failures=2)
    with pytest.raises(UserError, match="none of 5 clips got a caption: the answer is empty"):
        recaption(clips, tmp_path / "none", in_process(lambda c: [""] * len(c), "s", LOOK))
    assert not (tmp_path / "none/manifest.json").exists()


def test_an_out_folder_of_something_else_is_refused(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", SHAPES)
    with pytest.raises(KeyError):
        recaption(clips, tmp_path / "out", Counting(stop_after=1).captioner)
    other = Counting(language="de").captioner
    with pytest.raises(UserError, match='unfinished captions of other options: language was "und" and is "de"'):
        recaption(clips, tmp_path / "out", other)
    recaption(clips, tmp_path / "out", Counting().captioner)
    with pytest.raises(UserError, match='other data or options: language was "und" and is "de"'):
        recaption(clips, tmp_path / "out", other)
    with pytest.raises(UserError, match="limit was null and is 3"):
        recaption(clips, tmp_path / "out", Counting().captioner, limit=3)
    with pytest.raises(UserError, match="both"):
        recaption(clips, clips, other)


def test_latents_are_no_clips(tmp_path, latents_in):
    with pytest.raises(UserError, match="latent records, but clip records"):
        recaption(latents_in(tmp_path / "latents", 3), tmp_path / "out", Counting().captioner)


@pytest.mark.parametrize(
    ("frames", "asked", "places"), [(9, 3, [0, 4, 8]), (5, 8, [0, 1, 2, 3, 4]), (21, 0, range(21))]
)
def test_frames_are_spread_over_the_whole_clip(tmp_path, clips_in, frames, asked, places):
    record = ShardReader(clips_in(tmp_path, [(frames, 16, 24)])).read(0)
    shown = show(record, asked, long_side=12)
    assert shown.frames.shape == (len(places), 8, 12, 3)
    assert shown.times_s == tuple(place / 8.0 for place in places)
    found = shown.frames[..., 0].mean((1, 2)) - shown.frames[0, ..., 0].mean()
    np.testing.assert_allclose(found, places, atol=1.5)  # frame f is f brighter than the first


def test_a_line_goes_where_the_last_one_broke_off(tmp_path):
    with CaptionStaging(tmp_path, 3, {"a": 1}) as staging:
        staging.append(2, "two", "zwei ü")
    path = tmp_path / ".recaption/captions.jsonl"
    path.write_bytes(path.read_bytes() + b'{"record": 0, "cl')
    with CaptionStaging(tmp_path, 3, {"a": 1}) as staging:
        assert len(staging) == 1 and 0 not in staging
        staging.append(1, "one", "eins")
        assert [staging.caption(n) for n in range(3)] == [None, "eins", "zwei ü"]
    with CaptionStaging(tmp_path, 3, {"a": 1}) as staging:
        assert [staging.caption(n) for n in range(3)] == [None, "eins", "zwei ü"]
    with pytest.raises(UserError, match="a was 1 and is 2"):
        CaptionStaging(tmp_path, 3, {"a": 2})


@pytest.fixture
def encoded(tmp_path, clips_in):
    """Clips, one of which does not decode and one of which is several windows, and their latents."""
    clips = clips_in(tmp_path / "clips", SHAPES, damaged=[1])
    encode_latents(clips, tmp_path / "latents", ENCODING, WindowConfig(max_frames=9), lambda: None)
    (tmp_path / "latents/autoencoder").mkdir()
    (tmp_path / "latents/autoencoder/codec").write_text("weights")
    return clips, tmp_path / "latents"


def test_captions_come_onto_the_latents_of_their_clips(tmp_path, encoded):
    clips, latents = encoded
    recaption(clips, tmp_path / "new", Counting().captioner)
    result = recaption_latents(tmp_path / "new", latents, tmp_path / "out")
    before, after = ShardReader(latents), ShardReader(tmp_path / "out", kind="latent")
    named = {record.clip_id: record for record in map(ShardReader(tmp_path / "new").read, range(5))}
    assert result["windows"] == before.num_records() == 5
    for n in range(before.num_records()):
        old, new = before.read(n), after.read(n)
        assert new == replace(old, captions=named[old.clip_id.partition("@")[0]].captions)
        assert len(new.captions) == 2
    assert after.manifest.metadata["data_fingerprint"] == ShardReader(clips).manifest.fingerprint
    assert after.manifest.metadata["captions_fingerprint"] == ShardReader(tmp_path / "new").manifest.fingerprint
    assert (tmp_path / "out/autoencoder/codec").read_text() == "weights"
    assert contents(tmp_path / "out")["rejected.jsonl"] == contents(latents)["rejected.jsonl"]
    assert recaption_latents(tmp_path / "new", latents, tmp_path / "out") == result


def test_latents_of_other_clips_are_refused(tmp_path, encoded, clips_in):
    _, latents = encoded
    other = clips_in(tmp_path / "other", SHAPES[:2])
    with pytest.raises(UserError, match="was encoded from clips"):
        recaption_latents(other, latents, tmp_path / "out")
    with pytest.raises(UserError, match="one of the inputs"):
        recaption_latents(encoded[0], latents, latents)
