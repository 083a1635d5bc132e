"""Features of captions beside their latents: one entry a text, whatever kills the job, and what is refused."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from data_pipeline import caption_encoding
from data_pipeline.caption_encoding import STAGING, Storage, TextEncoding, encode_captions
from data_pipeline.caption_features import ENTRIES, FOLDER, CaptionFeatures, file_name
from data_pipeline.doctor import examine_data
from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from data_pipeline.stages import Member, Stage, check_features
from data_pipeline.stream import LatentSource, StreamConfig, make_stream

WIDTH = 6
CFG = StreamConfig(row_tokens=96, row_text=48, row_segments=6, batch_rows=2, durations="drawn", text_features=True)


class Counted:
    """Features that tell a token's id and its place; `stops_at` calls of `encode` it is killed."""

    def __init__(self, stops_at: int = -1):
        self.seen: list[list[int]] = []
        self.calls, self.stops_at = 0, stops_at

    def __call__(self, captions: Sequence[list[int]]) -> Iterator[np.ndarray]:
        self.calls += 1
        for ids in captions:
            if self.calls == self.stops_at and ids is captions[-1]:
                raise KeyboardInterrupt
            self.seen.append(ids)
            yield features_of(ids)


def features_of(ids: Sequence[int]) -> np.ndarray:
    rows = np.asarray(ids, np.float32)[:, None] + np.arange(WIDTH) / 8 + np.arange(len(ids))[:, None]
    return rows.astype(ml_dtypes.bfloat16)


def encode(latents: Path, encoder: Counted | None = None, sizes: list[Storage] | None = None, **changes):
    encoding = TextEncoding(encoder or Counted(), WIDTH, "an encoder")
    storage = [] if sizes is None else sizes
    return encode_captions(latents, dataclasses.replace(encoding, **changes), storage.append, lambda *done: None)


@pytest.fixture
def latents(latent_set: Path, tmp_path: Path, monkeypatch) -> Path:
    """Latents without features, whose features go into files of a few captions."""
    monkeypatch.setattr(caption_encoding, "TOKENS_PER_FILE", 40)
    return Path(shutil.copytree(latent_set, tmp_path / "latents"))


def texts_of(latents: Path) -> list[str]:
    reader = ShardReader(latents)
    return [caption.text for i in range(reader.num_records()) for caption in reader.read(i).captions]


def test_each_text_is_encoded_once_and_every_segment_has_its_captions_features(latents):
    encoder, sizes = Counted(), []
    made = encode(latents, encoder, sizes)
    different = {"", *texts_of(latents)}
    assert len(encoder.seen) == made.num_entries == len(different) > len(made.files) > 3
    tokens = sum(map(len, encoder.seen))
    assert sizes[0].total_bytes == made.num_bytes == tokens * WIDTH * 2 and sizes[0].captions == len(texts_of(latents))
    assert sizes[0].longest_bytes == max(map(len, encoder.seen)) * WIDTH * 2 <= sizes[0].free_bytes
    source = LatentSource(latents, CFG)
    assert source.spec()["text_features"] == ((2, 48, WIDTH), np.dtype(ml_dtypes.bfloat16))
    plain = LatentSource(latents, dataclasses.replace(CFG, text_features=False))
    for step in range(4):
        batch = source[step]
        found = {name: (array.shape, array.dtype) for name, array in batch.items()}
        assert found == source.spec()
        features = batch.pop("text_features")
        assert all(np.array_equal(batch[name], array) for name, array in plain[step].items())
        for row, ids, segments in zip(features, batch["text_ids"], batch["text_segment_ids"], strict=True):
            assert not row[segments == 0].any()
            for segment in range(1, segments.max() + 1):
                of_one = segments == segment
                assert np.array_equal(row[of_one], features_of(ids[of_one]))


def test_worker_processes_bring_the_same_features(latents):
    encode(latents)
    source = LatentSource(latents, CFG)
    with make_stream(source, 0, 3, num_workers=2) as stream:
        for step, batch in enumerate(stream):
            assert batch["text_features"].dtype == ml_dtypes.bfloat16
            assert np.array_equal(batch["text_features"], source[step]["text_features"])


def test_a_killed_job_goes_on_and_ends_with_the_same_files(latents, latent_set, tmp_path, monkeypatch):
    undisturbed = Path(shutil.copytree(latent_set, tmp_path / "undisturbed"))
    encode(undisturbed)
    with pytest.raises(KeyboardInterrupt):
        encode(latents, Counted(stops_at=3))
    with pytest.raises(UserError, match="holds no text features"):
        LatentSource(latents, CFG)
    staged = next((latents / STAGING).iterdir())
    assert (staged / file_name(1)).is_file() and not (staged / file_name(2)).is_file()
    monkeypatch.setattr(ShardReader, "read", lambda *_: pytest.fail("the texts are known"))
    again = Counted()
    made = encode(latents, again)
    assert again.calls == len(made.files) - 1 - 2, "two files were finished; the last of all is no file of features"
    there, here = ({p.name: p.read_bytes() for p in (d / FOLDER).iterdir()} for d in (undisturbed, latents))
    assert there.keys() == here.keys()
    assert all(there[name] == here[name] for name in there) and not (latents / STAGING).exists()
    finished = Counted()
    assert encode(latents, finished) == made and not finished.calls


def test_captions_are_cut_as_training_cuts_them(latents):
    short = dataclasses.replace(CFG, max_caption_tokens=4)
    encode(latents, max_tokens=4)
    batch = LatentSource(latents, short)[0]
    lengths = np.bincount(batch["text_segment_ids"][0])[1:]
    assert lengths.max() == 4
    assert np.array_equal(batch["text_features"][0, :4], features_of(batch["text_ids"][0, :4]))
    with pytest.raises(UserError, match="are of captions of up to 4: set config.data.max_caption_tokens=4 "):
        LatentSource(latents, CFG)


def test_features_of_another_encoder_or_other_captions_are_refused(latents, latent_set, tmp_path):
    encode(latents)
    with pytest.raises(UserError, match="of another text encoder fingerprint: an encoder there, other now"):
        encode(latents, fingerprint="other")
    with pytest.raises(UserError, match="of another dtype: bfloat16 there, float32 now"):
        encode(latents, dtype="float32")
    other = Path(shutil.copytree(latent_set, tmp_path / "other"))
    encode(other, fingerprint="other")
    stage = Stage(0, (Member(str(latents)), Member(str(other))), CFG)
    with pytest.raises(UserError, match="are of encoder an encoder, those of .* of other"):
        check_features([stage])
    assert check_features([dataclasses.replace(stage, stream=dataclasses.replace(CFG, text_features=False))]) is None
    reader = ShardReader(latents)
    changed = dataclasses.replace(reader.manifest, fingerprint="f" * 64)
    with pytest.raises(UserError, match="of the captions of data set .* is ffffffffffff"):
        CaptionFeatures(latents, changed, reader.index, 48)


def test_damaged_files_are_found_at_the_start_and_a_damaged_entry_costs_its_clip_only(latents, caplog):
    encode(latents)
    folder = latents / FOLDER
    path = folder / file_name(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"has {len(whole) - 1} bytes, its manifest says {len(whole)}"):
        LatentSource(latents, CFG)
    path.write_bytes(bytes(len(whole)))
    source = LatentSource(latents, CFG)
    assert sum(int(source[step]["num_unreadable"]) for step in range(3)) > 0
    assert "are unreadable" in caplog.text
    path.write_bytes(whole)
    (folder / ENTRIES).write_bytes(bytes((folder / ENTRIES).stat().st_size))
    with pytest.raises(UserError, match="is missing or damaged"):
        LatentSource(latents, CFG)


def test_a_disk_without_room_is_refused_before_anything_is_encoded(latents, monkeypatch):
    real, encoder = shutil.disk_usage, Counted()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=100))
    with pytest.raises(UserError, match="has 0.0 GB free"):
        encode(latents, encoder)
    assert not encoder.calls


def test_an_encoder_that_fails_is_not_taken_for_a_full_disk(latents):
    def encode_none(captions):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    with pytest.raises(RuntimeError, match="^RESOURCE_EXHAUSTED$"):
        encode(latents, encode_none)


def test_an_unreadable_record_costs_its_own_captions_only(latents, caplog):
    reader = ShardReader(latents)
    known = texts_of(latents)
    last = max(reader.index.select("train"))
    part = reader.read(int(last)).latents[:64]
    shard = next(path for path in latents.glob("train-*.array_record") if part in path.read_bytes())
    content = bytearray(shard.read_bytes())
    place = content.rindex(part)
    content[place : place + 64] = bytes(64)
    shard.write_bytes(content)
    made = encode(latents)
    assert f"its captions are left out: {latents}: record {last} is unreadable" in caplog.text
    assert len(set(known)) - 3 <= made.num_entries <= len({"", *known})
    features = CaptionFeatures(latents, reader.manifest, reader.index, 48)
    assert features.read(known[0]).shape[1] == WIDTH


def test_the_doctor_names_what_training_would_refuse(latents):
    def problems():
        return examine_data(latents, CFG, 10)["problems"]

    assert any("holds no text features" in problem for problem in problems())
    encode(latents, max_tokens=3)
    assert any("captions of up to 3" in problem for problem in problems())
    shutil.rmtree(latents / FOLDER)
    encode(latents)
    assert not problems()
