"""Shard directories: order, determinism, commit, damage."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.records import Caption, ClipRecord
from data_pipeline.shards import MAX_OPEN_SHARDS, Index, Manifest, ShardReader, ShardWriter
from data_pipeline.tokenizer import Tokenizer


def clip(number: int) -> ClipRecord:
    import hashlib

    video = bytes([number]) * (100 + number)
    captions = tuple(Caption(f"caption {c}", "human", "en", 2 + c + number) for c in range(number % 3))
    return ClipRecord(
        clip_id=f"c{number}", source_id="s", group_id="g", split="heldout" if number % 5 == 0 else "train", video=video,
        media_type="video/mp4", start_s=0.0, end_s=1.0, fps=8.0 + number, num_frames=1 + number, height=40, width=30,
        crop=(0, 0, 24 + number, 30), colour={}, license="", checksum=hashlib.sha256(video).hexdigest(),
        captions=captions,
    )  # fmt: skip


def write(directory: Path, numbers=range(11), **options) -> Manifest:
    writer = ShardWriter(directory, "clip", records_per_shard=4, tokenizer=Tokenizer.train(["a cat"]), **options)
    for number in numbers:
        writer.write(clip(number))
    return writer.finish()


def test_records_and_index_agree(tmp_path):
    write(tmp_path / "data")
    reader = ShardReader(tmp_path / "data", kind="clip")
    order = [1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 10]
    assert [reader.read(i) for i in range(11)] == [clip(number) for number in order]
    index = reader.index
    np.testing.assert_array_equal(index.select("train"), np.arange(8))
    np.testing.assert_array_equal(index.select("heldout"), [8, 9, 10])
    np.testing.assert_array_equal(index.frames, [1 + number for number in order])
    np.testing.assert_array_equal(index.height, [24 + number for number in order])
    np.testing.assert_array_equal(index.shard, [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0])
    for row, number in enumerate(order):
        tokens = index.caption_tokens[index.caption_offsets[row] : index.caption_offsets[row + 1]]
        assert list(tokens) == [caption.num_tokens for caption in clip(number).captions]
    assert reader.num_records("train") == 8 and reader.num_records() == 11
    assert reader.manifest.counts == {"train": 8, "heldout": 3}
    assert Tokenizer.load(tmp_path / "data" / "tokenizer.model").fingerprint == reader.manifest.tokenizer_fingerprint


def test_same_records_same_bytes(tmp_path):
    assert write(tmp_path / "one") == write(tmp_path / "two") == Manifest.load(tmp_path / "one")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert write(tmp_path / "three", range(10)).fingerprint != write(tmp_path / "four", range(9)).fingerprint


def test_reader_survives_pickling_after_use(tmp_path):
    write(tmp_path)
    reader = ShardReader(tmp_path)
    first = reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(0) == first


def test_nothing_is_visible_before_finish_and_leftovers_do_not_stay(tmp_path):
    (tmp_path / "train-00007-of-00009.array_record").write_bytes(b"from a run that was killed while publishing")
    writer = ShardWriter(tmp_path, "clip", 4)
    writer.write(clip(1))
    with pytest.raises(UserError, match="no finished data set"):
        ShardReader(tmp_path)
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.npz", "manifest.json", "train-00000-of-00001.array_record",
    ]  # fmt: skip


def test_refusals(tmp_path):
    write(tmp_path / "data")
    with pytest.raises(UserError, match="already holds"):
        ShardWriter(tmp_path / "data", "clip")
    with pytest.raises(UserError, match="holds clip records, but latent"):
        ShardReader(tmp_path / "data", kind="latent")
    with pytest.raises(UserError, match="does not belong"):
        ShardWriter(tmp_path / "latents", "latent").write(clip(1))
    with pytest.raises(UserError, match="latent_mean"):
        ShardWriter(tmp_path / "latents", "latent").finish()
    with pytest.raises(UserError, match="unknown split"):
        ShardReader(tmp_path / "data").index.select("test")
    with pytest.raises(IndexError):
        ShardReader(tmp_path / "data").read(11)
    with pytest.raises(UserError, match="choose one of clip, latent"):
        ShardWriter(tmp_path / "x", "sound")


def test_damage_is_named(tmp_path):
    write(tmp_path)
    reader = ShardReader(tmp_path)
    reader.verify()
    shard = tmp_path / reader.manifest.shards[0].file
    whole = shard.read_bytes()
    place = whole.index(clip(1).video)
    shard.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    with pytest.raises(UserError, match="damaged shards train-00000"):
        reader.verify()
    with pytest.raises(UserError):
        ShardReader(tmp_path).read(0)
    shard.write_bytes(whole[:-7])
    with pytest.raises(UserError, match=rf"train-00000.* has {len(whole) - 7} bytes, manifest.json says {len(whole)}"):
        ShardReader(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match="1 shards are missing, first train-00000"):
        ShardReader(tmp_path)
    index = (tmp_path / "index.npz").read_bytes()
    for damaged in (b"nonsense", b"", index[: len(index) // 2], index[:-30]):
        (tmp_path / "index.npz").write_bytes(damaged)
        with pytest.raises(UserError, match="missing or damaged"):
            Index.load(tmp_path / "index.npz")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text()[:-30])
    with pytest.raises(UserError, match="damaged"):
        Manifest.load(tmp_path)


def test_only_so_many_shards_stay_open(tmp_path):
    writer = ShardWriter(tmp_path, "clip", records_per_shard=1)
    for number in range(MAX_OPEN_SHARDS + 20):
        writer.write(replace(clip(1), clip_id=f"c{number}"))
    writer.finish()
    reader = ShardReader(tmp_path)
    for number in [*range(len(reader.index)), 0, 5]:
        assert reader.read(number).clip_id == f"c{number}"
        assert len(reader._readers) <= MAX_OPEN_SHARDS


def test_a_disk_without_space_is_a_clear_error(tmp_path, repository):
    """The kernel refuses writes beyond a limit, as a full disk would."""
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
import hashlib, dataclasses
from data_pipeline.errors import UserError
from data_pipeline.records import ClipRecord
from data_pipeline.shards import ShardWriter
writer = ShardWriter({str(tmp_path / "data")!r}, "clip")
video = bytes(300_000)
record = ClipRecord("c", "s", "g", "train", video, "video/mp4", 0.0, 1.0, 8.0, 8, 8, 8, (0, 0, 8, 8), {{}}, "",
    hashlib.sha256(video).hexdigest())
try:
    for number in range(9):
        writer.write(record)
    writer.finish()
except UserError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, timeout=60)
    assert "refused: writing shards into" in done.stdout, done.stderr
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_index_of_an_empty_split(tmp_path):
    writer = ShardWriter(tmp_path, "clip")
    writer.write(replace(clip(1), split="train"))
    writer.finish()
    assert ShardReader(tmp_path).num_records("heldout") == 0
