"""The doctor finds what was planted: a leak, a record that is damaged, a crop that nothing holds; a sheet is drawn."""

import dataclasses
import hashlib

import numpy as np
import pytest

from data_pipeline.clip_stream import ClipStreamConfig
from data_pipeline.contact_sheet import contact_sheet, pick
from data_pipeline.doctor import examine_data, report_sections
from data_pipeline.errors import UserError
from data_pipeline.page import render_page
from data_pipeline.records import Caption, ClipRecord
from data_pipeline.shards import ShardReader, ShardWriter
from data_pipeline.video_io import encode_video


def record(number: int, split: str, seed: int) -> ClipRecord:
    frames = np.full((9, 24, 32, 3), 20 * seed, np.uint8)
    video = encode_video(frames, 8.0, "mp4")
    return ClipRecord(
        clip_id=f"c{number}", source_id=f"c{number}", group_id=f"g{number}", split=split, video=video,
        media_type="video/mp4", start_s=0.0, end_s=9 / 8, fps=8.0, num_frames=9, height=24, width=32,
        crop=(0, 0, 24, 32), colour={}, license="CC0", checksum=hashlib.sha256(video).hexdigest(),
        captions=(Caption("a <grey> card", "human", "en", 5),),
    )  # fmt: skip


def test_the_doctor_finds_what_was_planted(tmp_path):
    writer = ShardWriter(tmp_path / "data", "clip", records_per_shard=2)
    clips = [record(n, "train", n) for n in range(5)]
    for clip in (*clips, record(5, "heldout", 6), record(6, "heldout", 3)):  # the last shows what clip 3 shows
        writer.write(clip)
    manifest = writer.finish()
    shard = tmp_path / "data" / next(shard.file for shard in manifest.shards)
    damaged = bytearray(shard.read_bytes())
    place = damaged.index(clips[0].video[-40:])
    damaged[place] ^= 1
    shard.write_bytes(damaged)
    config = ClipStreamConfig(crops=((5, 16, 16),), batch_size=2)
    report = examine_data(tmp_path / "data", config, num_steps=10)
    assert [line["record"] for line in report["records"]["unreadable"]] == [0]
    assert report["problems"] == ["1 clips are in train and in heldout"]
    assert report["run"]["clips_by_crop"] == {"5x16x16": 5} and report["run"]["epochs"] == 4
    nothing = examine_data(tmp_path / "data", dataclasses.replace(config, crops=((10, 16, 16),)), num_steps=10)
    assert nothing["problems"][0].startswith("the run would train on nothing: no clip of")
    page = render_page("title", "subtitle", report_sections(report))
    assert "the shard is damaged" in page and "1 of 7 records are unreadable" in page
    reader = ShardReader(tmp_path / "data")
    with pytest.raises(UserError, match="number of records is 0, but must be at least 1"):
        pick(reader, "train", 0)
    numbers = pick(reader, "train", 3)
    sheet = np.asarray(contact_sheet(reader, numbers))
    assert numbers == [0, 2, 4] and (sheet[102 + 40, 40] // 8 == 40 // 8).all()  # the second row shows clip 2
