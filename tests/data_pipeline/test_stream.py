import dataclasses
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.known_masks import KnownProbabilities
from data_pipeline.packing import patchify, segment_offsets, unpack_tokens
from data_pipeline.shards import ShardReader
from data_pipeline.stream import LatentSource, StreamConfig, make_stream, spec

KNOWN = KnownProbabilities(first=0.2, prefix=0.2, ends=0.1, frames=0.1, region=0.2)
CFG = StreamConfig(row_tokens=96, row_text=48, row_segments=6, batch_rows=4, durations="drawn", known=KNOWN)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


@pytest.fixture(scope="module")
def source(latent_set: Path) -> LatentSource:
    return LatentSource(latent_set, CFG)


def test_batches_have_the_spec(source: LatentSource) -> None:
    for step in range(4):
        found = {name: (array.shape, array.dtype) for name, array in source[step].items()}
        assert found == source.spec() == spec(CFG, source.channels)


def test_every_segment_is_a_normalised_prefix_of_its_record_with_its_caption(source: LatentSource) -> None:
    manifest = source.reader.manifest.metadata
    mean, std = np.float32(manifest["latent_mean"]), np.float32(manifest["latent_std"])
    captions_seen = 0
    for step in range(6):
        batch = source[step]
        for b, segment in zip(*np.nonzero(batch["sample_ids"] >= 0), strict=True):
            record = source.reader.read(int(batch["sample_ids"][b, segment]))
            _, height, width = source.layout.grid(record.shape)
            frames = batch["sample_tokens"][b, segment] // (height * width)
            offset = segment_offsets(batch["sample_tokens"][b])[segment]
            shape = (int(frames), *record.shape[1:3])
            latents = unpack_tokens(batch["tokens"][b], offset, shape, CFG.patch_size)
            expected = (record.latent_array()[:frames].astype(np.float32) - mean) / std
            assert np.allclose(patchify(latents, CFG.patch_size), patchify(expected, CFG.patch_size), atol=1e-6)
            ids = batch["text_ids"][b][batch["text_segment_ids"][b] == segment + 1].tolist()
            assert ids[-1] == source.tokenizer.eos_id
            texts = [caption.text for caption in record.captions]
            assert len(ids) == 1 or source.tokenizer.decode(ids[:-1]) in texts
            captions_seen += len(ids) > 1
    assert captions_seen > 20


def test_latents_are_standardised(source: LatentSource) -> None:
    """Record latents are N(2, 3²) in every channel; the manifest says (2, 1, 0) and (3, 2, 1)."""
    values = np.concatenate([source[s]["tokens"][source[s]["segment_ids"] > 0].reshape(-1, 3) for s in range(6)])
    assert np.allclose(values.mean(axis=0), [0.0, 0.5, 2.0], atol=0.15)
    assert np.allclose(values.std(axis=0), [1.0, 1.5, 3.0], atol=0.15)


def test_known_groups_leave_something_to_generate_in_every_segment(source: LatentSource) -> None:
    known_tokens = 0
    for step in range(6):
        batch = source[step]
        live = batch["segment_ids"] > 0
        groups = batch["noise_group_ids"]
        assert np.array_equal(groups[live] // 2 + 1, batch["segment_ids"][live])
        assert not groups[~live].any()
        known_tokens += int((groups[live] % 2).sum())
        for b, segment in zip(*np.nonzero(batch["sample_ids"] >= 0), strict=True):
            assert (groups[b][batch["segment_ids"][b] == segment + 1] % 2 == 0).any()
    assert known_tokens > 0


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_the_order_is_the_same_for_any_number_of_workers_and_any_restart(source: LatentSource, num_workers) -> None:
    with make_stream(source, 3, 5, num_workers) as stream:
        batches = list(stream)
    assert len(batches) == 5
    for step, batch in enumerate(batches, start=3):
        assert equal(batch, source[step])


def test_a_stream_can_be_left_early_and_is_then_over(source: LatentSource) -> None:
    stream = make_stream(source, 0, 1_000_000, 0)
    assert equal(next(stream), source[0])
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_together_hold_the_global_batch(latent_set: Path, source: LatentSource, num_hosts: int) -> None:
    rows = CFG.batch_rows // num_hosts
    hosts = [LatentSource(latent_set, CFG, rows=(n * rows, (n + 1) * rows)) for n in range(num_hosts)]
    for step in (0, 7, 1_000_001):
        parts = [host[step] for host in hosts]
        whole = source[step]
        for name in whole.keys() - {"num_unreadable"}:
            assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_a_pickled_source_is_the_same_source(source: LatentSource) -> None:
    assert equal(pickle.loads(pickle.dumps(source))[5], source[5])


def test_seed_and_split_change_what_is_drawn(latent_set: Path, source: LatentSource) -> None:
    other = LatentSource(latent_set, dataclasses.replace(CFG, seed=1))
    assert not equal(other[0], source[0])
    heldout = LatentSource(latent_set, CFG, "heldout")
    assert {i for step in range(4) for i in heldout[step]["sample_ids"].ravel().tolist()} == {-1, *range(60, 70)}
    assert max(source[step]["sample_ids"].max() for step in range(9)) < 60


def test_caption_dropout_empties_captions_at_its_rate(latent_set: Path) -> None:
    def empty_share(dropout: float) -> float:
        source = LatentSource(latent_set, dataclasses.replace(CFG, caption_dropout=dropout))
        counts = [
            np.bincount(ids[ids > 0] - 1) == 1 for s in range(10) for ids in source[s]["text_segment_ids"]
        ]  # a caption of one token is the end of text alone
        return float(np.concatenate(counts).mean())

    without, half = empty_share(0.0), empty_share(0.5)
    assert empty_share(1.0) == 1.0
    assert abs(half - (without + 0.5 * (1 - without))) < 0.1


def test_an_unreadable_record_is_left_out_logged_once_and_counted(latents_in, tmp_path: Path, caplog) -> None:
    directory = latents_in(tmp_path / "data", 12)
    source = LatentSource(directory, CFG)
    damage(directory, source.reader, record=5)
    damaged, counted = LatentSource(directory, CFG), 0
    with caplog.at_level(logging.WARNING):
        for step in range(8):
            batch, whole = damaged[step], source[step]
            missing = int((whole["sample_ids"] == 5).sum())
            assert int(batch["num_unreadable"]) == missing
            assert not (batch["sample_ids"] == 5).any()
            assert batch["sample_tokens"].sum() == whole["sample_tokens"][whole["sample_ids"] != 5].sum()
            counted += missing
    assert counted > 1
    assert len([record for record in caplog.records if "unreadable" in record.message]) == 1


def damage(directory: Path, reader: ShardReader, record: int) -> None:
    """Overwrites the msgpack map of a record in its shard with zeros; `reader` keeps the intact file."""
    packed_latents = reader.read(record).latents
    shard = next(directory.glob("train-00000-*"))
    data = shard.read_bytes()
    start = data.index(packed_latents)
    shard.unlink()
    shard.write_bytes(data[:start] + bytes(len(packed_latents)) + data[start + len(packed_latents) :])


def test_latents_of_another_autoencoder_are_an_error(latents_in, tmp_path: Path) -> None:
    source = LatentSource(latents_in(tmp_path / "data", 6, foreign=3), CFG)
    with pytest.raises(UserError, match="autoencoder other, the data set by ae"):
        for step in range(4):
            source[step]


def test_a_tokenizer_that_is_not_the_datas_is_an_error(latent_set: Path, latents_in, tmp_path: Path) -> None:
    directory = latents_in(tmp_path / "data", 6, seed=1)
    shutil.copyfile(latent_set / "tokenizer.model", directory / "tokenizer.model")
    with pytest.raises(UserError, match="captions were counted with"):
        LatentSource(directory, CFG)


def test_bad_arguments_are_user_errors(latent_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished data set"):
        LatentSource(tmp_path, CFG)
    with pytest.raises(UserError, match="rows .2, 5. are not rows of a batch of 4"):
        LatentSource(latent_set, CFG, rows=(2, 5))
    with pytest.raises(UserError, match="no clip fits into a row"):
        LatentSource(latent_set, dataclasses.replace(CFG, row_tokens=3))
    with pytest.raises(UserError, match="caption_dropout is 2"):
        dataclasses.replace(CFG, caption_dropout=2.0)
