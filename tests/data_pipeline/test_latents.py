import tracemalloc

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.latents import Encoding, WindowConfig, cut_windows, encode_latents
from data_pipeline.shards import ShardReader

TEMPORAL, SPATIAL = 4, 8


def encode(video):
    """The mean pixel of each latent's place, and of the first frame it may see."""
    frames = video[:, ::TEMPORAL]
    b, f, y, x, _ = frames.shape
    return frames.reshape(b, f, y // SPATIAL, SPATIAL, x // SPATIAL, SPATIAL, 3).mean((3, 5), dtype=np.float32)


ENCODING = Encoding(encode, TEMPORAL, SPATIAL, "means", ((0.0,) * 3, (1.0,) * 3))


@pytest.mark.parametrize(
    ("lengths", "max_frames", "windows", "cut"),
    [
        ([5, 9], 65, [2, 3], 0),  # 1 + 4 n: nothing is cut
        ([7, 1, 4], 65, [2, 1, 1], 2 + 0 + 3),
        ([21], 9, [3, 3], 21 - 18),  # what is left of a long clip, 3 frames, is too short for a window
        ([14], 9, [3, 2], 0),
    ],
)
def test_windows_are_legal_and_what_they_leave_out_is_counted(tmp_path, clips_in, lengths, max_frames, windows, cut):
    clips = clips_in(tmp_path / "clips", [(n, 16, 24) for n in lengths])
    config, seen = WindowConfig(max_frames=max_frames), []
    counts = encode_latents(clips, tmp_path / "latents", ENCODING, config, lambda: seen.append(1))
    reader = ShardReader(tmp_path / "latents", kind="latent")
    assert [reader.read(n).shape[0] for n in range(reader.num_records())] == windows
    assert (counts["frames_cut"], counts["windows"], counts["rejected"], len(seen)) == (
        cut, len(windows), 0, len(lengths),
    )  # fmt: skip
    again = encode_latents(clips, tmp_path / "latents", ENCODING, config, lambda: seen.append(1))
    assert again == counts and len(seen) == len(lengths)


@pytest.mark.parametrize("short_side", [0, 16])
def test_a_clip_is_never_in_memory_as_a_whole(tmp_path, clips_in, short_side):
    """Windows of 5 frames of a clip of 60; a frame and its copies while it is decoded and scaled come on top."""
    record = ShardReader(clips_in(tmp_path, [(60, 160, 160)])).read(0)
    tracemalloc.start()
    try:
        windows = cut_windows(record, WindowConfig(max_frames=5, short_side=short_side), TEMPORAL, SPATIAL)
        shapes = [window.frames.shape for window in windows]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert shapes == [(5, short_side or 160, short_side or 160, 3)] * 12
    assert peak < 20 * 160 * 160 * 3


def test_a_clip_that_does_not_decode_is_rejected_and_counted(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", [(5, 16, 24), (5, 16, 24)], damaged=[1])
    counts = encode_latents(clips, tmp_path / "latents", ENCODING, WindowConfig(), lambda: None)
    assert (counts["windows"], counts["rejected"]) == (1, 1)


def test_of_several_rates_each_clip_draws_one_that_it_has(tmp_path, clips_in):
    clips = clips_in(tmp_path / "clips", [(18, 16, 24)] * 12)  # 8 frames a second each
    config = WindowConfig(fps=(4.0, 8.0, 30.0))
    assert WindowConfig(fps=(30.0, 4.0, 8.0)) == config
    encode_latents(clips, tmp_path / "latents", ENCODING, config, lambda: None)
    reader = ShardReader(tmp_path / "latents", kind="latent")
    found = [(record.fps, record.shape[0]) for record in map(reader.read, range(12))]
    assert set(found) == {(4.0, 3), (8.0, 5)} and 3 <= found.count((8.0, 5)) <= 9
    again = {w.fps for n in range(12) for w in cut_windows(ShardReader(clips).read(n), config, TEMPORAL, SPATIAL)}
    assert again == {4.0, 8.0}
    slow = WindowConfig(fps=(16.0, 30.0))
    assert [w.fps for w in cut_windows(ShardReader(clips).read(0), slow, TEMPORAL, SPATIAL)] == [8.0]
    with pytest.raises(UserError, match="one or several rates above 0"):
        WindowConfig(fps=(0.0, 8.0))
