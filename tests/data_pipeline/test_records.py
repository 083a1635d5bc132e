"""Records survive the round trip exactly, and nothing else is accepted."""

import hashlib
from dataclasses import replace

import ml_dtypes
import msgpack
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.records import Caption, ClipRecord, LatentRecord, pack_record, unpack_record


def clip_record(**changes) -> ClipRecord:
    video = b"not really a video"
    record = ClipRecord(
        clip_id="a.mp4", source_id="a.mp4", group_id="a", split="train", video=video, media_type="video/mp4",
        start_s=0.0, end_s=1.5, fps=8.0, num_frames=12, height=32, width=48, crop=(2, 4, 30, 44),
        colour={"primaries": "bt709", "handling": "as is"}, license="CC0-1.0",
        checksum=hashlib.sha256(video).hexdigest(),
        captions=(Caption("a cat · é", "human", "en", 4), Caption("", "none")), scores={"clean_share": 0.5},
    )  # fmt: skip
    return replace(record, **changes)


def latent_record(**changes) -> LatentRecord:
    values = np.random.default_rng(0).normal(size=(3, 4, 5, 8)).astype(ml_dtypes.bfloat16)
    record = LatentRecord(
        clip_id="a", source_id="a.mp4", group_id="a", split="heldout", latents=values.tobytes(), shape=(3, 4, 5, 8),
        fps=12.0, start_s=0.5, temporal_compression=4, spatial_compression=8, captions=(), scores={},
        autoencoder_fingerprint="ae", data_fingerprint="data",
    )  # fmt: skip
    return replace(record, **changes)


@pytest.mark.parametrize("record", [clip_record(), latent_record()], ids=["clip", "latent"])
def test_round_trip_is_exact(record):
    assert unpack_record(pack_record(record)) == record


def test_latents_come_back_as_bfloat16_and_know_their_frames():
    record = unpack_record(pack_record(latent_record()))
    expected = np.random.default_rng(0).normal(size=(3, 4, 5, 8)).astype(ml_dtypes.bfloat16)
    assert record.latent_array().dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(record.latent_array(), expected)
    assert record.num_frames == 9 and record.duration_s == pytest.approx(9 / 12)


def test_equal_records_are_equal_bytes():
    one = clip_record(scores={"a": 1.0, "b": 2.0})
    other = clip_record(scores={"b": 2.0, "a": 1.0})
    assert pack_record(one) == pack_record(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"kind": "sound"}, "kind must be"),
        ({"split": "test"}, "split 'test'"),
        ({"fps": "8"}, "fps is a str"),
        ({"num_frames": True}, "num_frames is a bool"),
        ({"crop": [0, 0, 33, 48]}, "crop"),
        ({"crop": [0, 0, 32]}, "3 items"),
        ({"video": b"other bytes"}, "checksum"),
        ({"captions": [{"text": "a"}]}, "missing fields"),
        ({"surprise": 1}, "unknown fields"),
    ],
)
def test_what_breaks_the_schema_is_refused(change, message):
    plain = msgpack.unpackb(pack_record(clip_record())) | change
    with pytest.raises(UserError, match=message):
        unpack_record(msgpack.packb(plain))


def test_missing_fields_damaged_bytes_and_short_latents_are_refused():
    plain = msgpack.unpackb(pack_record(clip_record()))
    del plain["license"]
    with pytest.raises(UserError, match=r"missing fields \['license'\]"):
        unpack_record(msgpack.packb(plain))
    with pytest.raises(UserError, match="msgpack"):
        unpack_record(pack_record(clip_record())[:-3])
    with pytest.raises(UserError, match="shape says 960"):
        pack_record(latent_record(latents=b"\0\0"))
