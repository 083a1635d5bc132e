"""From a folder of files to shards: every input gets a verdict, and what happened on the way leaves no trace."""

import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build import BUILD_VERSION, BuildConfig, build
from data_pipeline.errors import UserError
from data_pipeline.ingest import ingest
from data_pipeline.outcomes import outcomes_table
from data_pipeline.shards import ShardReader
from data_pipeline.staging import load_verdict, stage_all
from data_pipeline.video_io import decode, decode_record, encode_video, write_video
from data_pipeline.walk import (
    DROID_GROUP,
    count_unmatched,
    find_inputs,
    group_of,
    group_pattern,
    heldout_groups,
    read_captions,
)


def clip(seed: int, num_frames: int = 12, height: int = 32, width: int = 40) -> np.ndarray:
    """A bright square that moves over a ramp."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames += (np.arange(width, dtype=np.uint8) + np.uint8(7 * seed))[:, None]
    for number, frame in enumerate(frames):
        frame[4:14, 2 + number : 12 + number] = (250, 30 * seed % 250, 90)
    return frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good files, seven bad ones, two sidecars and a hidden file."""
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(4):
        write_video(folder / f"good{seed}.mp4", clip(seed), 8.0)
    write_video(folder / "deep" / "odd.webm", clip(4, height=33, width=41), 12.0)
    write_video(folder / "image.png", clip(5, num_frames=1), 8.0)
    write_video(folder / "fast.mp4", clip(6), 1000.0)
    write_video(folder / "tiny.png", clip(7, num_frames=1)[:, :4, :4], 8.0)
    noise = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), np.uint8)
    write_video(folder / "noise.mp4", noise, 8.0, crf=1)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mov").write_text("this is no film")
    whole = encode_video(clip(8, num_frames=64), 8.0, "mp4", 1)
    (folder / "cut_early.mp4").write_bytes(whole[: len(whole) // 8])
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "notes.txt").write_text("a sidecar")
    (folder / ".hidden.mp4").write_text("hidden")
    lines = [{"path": f"good{seed}.mp4", "caption": f"square number {seed}"} for seed in range(4)]
    lines += [{"path": "good0.mp4", "caption": "a second caption", "caption_source": "human", "language": "en"}]
    lines += [{"path": "image.png", "caption": "a picture", "license": "CC0-1.0", "group": "album"}]
    lines += [{"path": "absent.mp4", "caption": "nobody"}]
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


CONFIG = BuildConfig(heldout_fraction=0.3, max_seconds=20.0, records_per_shard=3)


@pytest.fixture(scope="module")
def built(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("built") / "data"
    return out, build(videos, out, CONFIG, workers=2)


def shard_bytes(directory: Path) -> dict[str, bytes]:
    assert not list(directory.glob(".*")), "nothing temporary stays"
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_every_input_is_in_a_shard_or_rejected_with_a_reason(built):
    out, counts = built
    rejected = {
        line["path"]: line["reason"] for line in map(json.loads, (out / "rejected.jsonl").read_text().splitlines())
    }
    expected = {
        "fast.mp4": "1000 frames/s", "tiny.png": "4x4 are smaller", "noise.mp4": "noise", "empty.mp4": "empty",
        "text.mov": "cannot be read", "cut_early.mp4": "cannot be read", "sound.wav": "no video stream, only audio",
        "dangling.mp4": "dangling link",
    }  # fmt: skip
    assert set(rejected) == set(expected)
    for path, reason in expected.items():
        assert reason in rejected[path], rejected[path]
    reader = ShardReader(out, "clip")
    sources = {reader.read(i).source_id for i in range(reader.num_records())}
    assert sources == {"good0.mp4", "good1.mp4", "good2.mp4", "good3.mp4", "deep/odd.webm", "image.png"}
    assert (counts["inputs"], counts["clips"], counts["rejected"]) == (14, 6, 8)
    assert counts["captions_unmatched"] == 1


def test_records_hold_the_source_and_what_is_known_of_it(videos, built):
    reader = ShardReader(built[0])
    records = {record.clip_id: record for record in map(reader.read, range(reader.num_records()))}
    for path, record in records.items():
        assert record.video == (videos / path).read_bytes()
        frames, fps = decode_record(record)
        assert frames.shape == (record.num_frames, record.height, record.width, 3) and fps == record.fps
    assert [c.text for c in records["good0.mp4"].captions] == ["square number 0", "a second caption"]
    assert records["good0.mp4"].captions[1].source == "human" and records["good0.mp4"].captions[1].language == "en"
    assert all(c.num_tokens > 1 for record in records.values() for c in record.captions)
    assert records["image.png"].license == "CC0-1.0" and records["image.png"].group_id == "album"
    assert records["image.png"].num_frames == 1 and records["image.png"].media_type == "image/png"
    assert (records["deep/odd.webm"].height, records["deep/odd.webm"].width) == (33, 41)
    assert records["deep/odd.webm"].fps == pytest.approx(12.0, rel=0.01)


def test_killed_and_run_again_gives_the_same_bytes(videos, built, tmp_path, repository):
    """kill -9 while inputs are staged, again before the shards are committed; another number of workers."""
    out = tmp_path / "data"
    command = [
        sys.executable,
        "-m",
        "sora_jax.commands.main",
        "data",
        "build",
        "--videos",
        str(videos),
        "--out",
        str(out),
    ]
    command += ["--heldout_fraction", "0.3", "--records_per_shard", "3", "--workers", "1"]
    first = subprocess.Popen(
        command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list((out / ".staging").glob("*"))) < 3 and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (out / "train-00000-of-00099.array_record").write_bytes(b"half published")
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert {key: last[key] for key in built[1]} == built[1]
    assert shard_bytes(out) == shard_bytes(built[0])


def test_a_finished_build_is_left_alone_and_never_overwritten(videos, built):
    out, counts = built
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert build(videos, out, CONFIG) == counts
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(UserError, match="other options"):
        build(videos, out, dataclasses.replace(CONFIG, heldout_fraction=0.0))
    with pytest.raises(UserError, match="other inputs"):
        build(videos / "deep", out, CONFIG)
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_a_worker_that_dies_costs_nothing(videos, built, tmp_path):
    """As the kernel kills a process when memory runs out."""

    def kill_one(done: int, total: int) -> None:
        if done == 1:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    assert build(videos, tmp_path / "data", CONFIG, workers=2, on_progress=kill_one) == built[1]
    assert shard_bytes(tmp_path / "data") == shard_bytes(built[0])


def test_long_videos_become_windows_that_add_up(tmp_path):
    frames = clip(1, num_frames=25)
    write_video(tmp_path / "in" / "long.mp4", frames, 8.0)
    counts = build(tmp_path / "in", tmp_path / "out", BuildConfig(max_seconds=1.2))
    reader = ShardReader(tmp_path / "out")
    records = sorted(map(reader.read, range(reader.num_records())), key=lambda record: record.clip_id)
    assert counts["clips"] == 3 and [record.num_frames for record in records] == [8, 9, 8]
    assert [record.scores["source_start_s"] for record in records] == [0.0, 1.0, 2.125]
    assert len({record.group_id for record in records}) == 1
    back = np.concatenate([decode_record(record)[0] for record in records]).astype(float)
    source = decode(tmp_path / "in" / "long.mp4")[0]
    errors = ((back[:, None] - source[None]) ** 2).mean((2, 3, 4))
    np.testing.assert_array_equal(errors.argmin(1), np.arange(25))
    assert 10 * np.log10(255**2 / errors.diagonal().mean()) > 28
    assert "cut into 3 windows" in outcomes_table(tmp_path / "out")[0]


def test_clips_are_assembled_one_at_a_time(tmp_path):
    """Sixteen windows, each encoded again; never two of them in the memory of the process that writes the shards."""
    coarse = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
    write_video(tmp_path / "in" / "long.mp4", coarse.repeat(3, axis=1).repeat(3, axis=2), 8.0, crf=14)
    staged = stage_all(tmp_path / "in", tmp_path / "out" / ".staging", ["long.mp4"], BUILD_VERSION, 0.5, 1, print)
    sizes = [clip.video.stat().st_size for clip in load_verdict(staged["long.mp4"]).clips]
    tracemalloc.start()
    try:
        build(tmp_path / "in", tmp_path / "out", BuildConfig(max_seconds=0.5, heldout_fraction=0.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(sizes) == 16 and peak < 0.7 * sum(sizes)


def test_the_undamaged_run_of_a_broken_file_is_kept_if_it_is_half(tmp_path):
    whole = encode_video(clip(2, num_frames=64), 8.0, "mp4", 1)
    start = whole.index(b"mdat") + 4
    size = int.from_bytes(whole[start - 8 : start - 4], "big") - 8

    def broken_at(share: float) -> Path:
        place = start + int(share * size)
        path = tmp_path / f"{share}.mp4"
        path.write_bytes(whole[:place] + bytes(200) + whole[place + 200 :])
        return path

    verdict = ingest(broken_at(0.8), 20.0, tmp_path / "staged")
    assert len(verdict.clips) == 1, verdict.rejected
    kept = verdict.clips[0]
    assert kept.video is not None and 0.5 <= kept.scores["clean_share"] < 0.9
    assert kept.num_frames == round(64 * kept.scores["clean_share"])
    reference = decode(whole)[0][: kept.num_frames].astype(float)
    assert 10 * np.log10(255**2 / np.mean((decode(kept.video)[0] - reference) ** 2)) > 28
    assert "play cleanly" in ingest(broken_at(0.3), 20.0, tmp_path / "staged").rejected


def test_linked_folders_are_followed_and_each_is_read_once(tmp_path):
    for name in ("in/real/a.mp4", "elsewhere/deep/b.mp4", "in/out/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "in" / "alias").symlink_to(tmp_path / "in" / "real")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "in")
    assert find_inputs(tmp_path / "in", exclude=tmp_path / "in" / "out") == ["link/deep/b.mp4", "real/a.mp4"]


def test_a_folder_that_cannot_be_read_is_rejected(repository):
    """As an ordinary user: root may read everything, the codec of captions files too, if Python is in root's home."""
    script = "import encodings.utf_8_sig, os, sys; from pathlib import Path\n"
    script += "from data_pipeline.walk import find_inputs, read_captions\n"
    script += "os.seteuid(os.geteuid() or 65534); folder = Path(sys.argv[1])\n"
    script += "print(find_inputs(folder, Path('/nowhere')), [*read_captions(None, folder)])"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        Path(folder, "a.mp4").write_bytes(b"")
        Path(folder, "captions.csv").write_text("path,caption\na.mp4,a\n")
        Path(folder, "closed").mkdir(mode=0)
        command = [sys.executable, "-c", script, folder]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['a.mp4', 'closed'] ['a.mp4']", done.stderr


def test_an_unreadable_folder_has_a_reason(tmp_path):
    assert "folder cannot be read" in ingest(tmp_path, 20.0, tmp_path / "staged").rejected


def test_groups_are_held_out_by_a_hash_of_their_own():
    groups = {f"film{number}" for number in range(2000)}
    held = heldout_groups(groups, 0.1)
    assert len(held) == pytest.approx(200, abs=60)
    assert heldout_groups(set(list(groups)[:500]), 0.1) == held & set(list(groups)[:500])
    assert heldout_groups({"a", "b"}, 0.999999) != {"a", "b"}
    assert heldout_groups(set(), 0.5) == set()


def test_droid_names_group_by_episode():
    pattern = group_pattern(DROID_GROUP)
    names = [f"droid/20d7e5d4_Tue_May__9_02-22-47_2023_{camera}.mp4" for camera in (20655732, 20103212)]
    assert {group_of(name, [], pattern) for name in names} == {"20d7e5d4_Tue_May__9_02-22-47_2023"}
    assert group_of("misc/cat_2023_123.mp4", [], pattern) == "misc/cat_2023_123.mp4"
    assert group_of("film_a/scene1.mp4", [], group_pattern(r"(?P<group>film_\w+)/")) == "film_a"
    for bad in ("(", "no group"):
        with pytest.raises(UserError, match="--group_regex"):
            group_pattern(bad)


def test_captions_files_are_read_or_refused_by_line(tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text('\ufeffpath,caption,caption_source\na.mp4,"one, two",human\n./b.mp4,three,\n', encoding="utf-8")
    lines = read_captions(table, tmp_path)
    assert lines["a.mp4"][0].text == "one, two" and lines["a.mp4"][0].source == "human"
    assert lines["b.mp4"][0].source == "unknown"
    for content, message in (
        ('{"path": "a", "caption": "b"}\nnonsense', "line 2 is not JSON"),
        ('{"path": "a"}', "line 1 has no text in 'caption'"),
        ("[1]", "line 1 must be an object"),
        ('{"path": "a", "caption": "half \\ud83d"}', "line 1 has \\ud83d, half of a character"),
        ("\n", "has no captions"),
    ):
        (tmp_path / "captions.jsonl").write_text(content)
        with pytest.raises(UserError, match=re.escape(message)):
            read_captions(None, tmp_path)
    for content, message in (
        ("path,caption\na.mp4,one\nb.mp4,a red ball, moving\n", "line 3 has 3 columns, the first line 2: quote"),
        ('path,caption\na.mp4,"two\nlines"\nb.mp4\n', "line 4 has no text in 'caption'"),
        ("path,caption\n", "has no captions"),
        ("", "has no captions"),
    ):
        table.write_text(content)
        with pytest.raises(UserError, match=re.escape(message)):
            read_captions(table, tmp_path)
    with pytest.raises(UserError, match=r"must end in \.csv, \.jsonl or \.parquet"):
        read_captions(tmp_path / "captions.xlsx", tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(tmp_path / "absent.csv", tmp_path)


def test_captions_of_subfolders_name_files_of_their_own_folder(tmp_path):
    """As in Hugging Face's folders with splits; a table of something else in a subfolder is none of captions."""
    for name in ("a.mp4", "train/a.mp4", "train/deep/b.mp4", "labels/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,of the root\n")
    rows = [{"file_name": "a.mp4", "text": "of train"}, {"file_name": "deep/b.mp4", "text": "deep"},
            {"file_name": "./absent.mp4", "text": "lost"}]  # fmt: skip
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\na.mp4,the second table of a folder\n")
    (tmp_path / "labels" / "metadata.csv").write_text("file_name,label\nc.mp4,7\n")
    lines = read_captions(None, tmp_path)
    assert {name: [line.text for line in own] for name, own in lines.items()} == {
        "a.mp4": ["of the root"], "train/a.mp4": ["of train"], "train/deep/b.mp4": ["deep"],
        "train/absent.mp4": ["lost"],
    }  # fmt: skip
    assert count_unmatched(lines, find_inputs(tmp_path, tmp_path / "out"), tmp_path) == 1
    with pytest.raises(UserError, match=r"none of the 1 captioned files is in .* name 'x.mp4', there is 'a.mp4'"):
        count_unmatched(["x.mp4"], ["b.mp4", "a.mp4"], tmp_path)


def test_bad_folders_and_options_are_clear_errors(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        build(tmp_path / "absent", tmp_path / "out", BuildConfig())
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no videos or images"):
        build(tmp_path / "in", tmp_path / "out", BuildConfig())
    (tmp_path / "in" / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 inputs .* usable"):
        build(tmp_path / "in", tmp_path / "out", BuildConfig())
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["reason"] == "the file is empty"
    for options in ({"heldout_fraction": 1.0}, {"max_seconds": 0.0}, {"group_regex": "x"},
                    {"records_per_shard": 0}, {"vocab_size": 300}):  # fmt: skip
        with pytest.raises(UserError):
            build(tmp_path / "in", tmp_path / "out", BuildConfig(**options))


def test_two_builds_never_share_a_folder(videos, tmp_path):
    with pytest.raises(UserError, match="--out and --videos are both"):
        build(videos, videos / "deep" / "..", CONFIG)
    (tmp_path / "out").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another build writes into"):
            build(videos, tmp_path / "out", CONFIG)
    finally:
        os.close(descriptor)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, or lies below one: choose another folder"):
        build(videos, tmp_path / "file", CONFIG)


def test_encrypted_and_keyless_files_are_rejected(shared_data, tmp_path):
    odd = shared_data / "odd_videos"
    assert "encrypted" in ingest(odd / "mp4ff__prog_8s_enc_dashinit.mp4", 20.0, tmp_path / "staged").rejected
    assert "play cleanly" in ingest(odd / "media__sample_with_junk", 20.0, tmp_path / "staged").rejected
    assert "play cleanly" in ingest(odd / "libwebm__block_ends_beyond_cluster.mkv", 20.0, tmp_path / "staged").rejected
    kept = ingest(odd / "media__sample_vvc.mp4", 20.0, tmp_path / "staged")
    assert kept.clips[0].video is None and kept.clips[0].num_frames == 120
    assert kept.checksum == hashlib.sha256((odd / "media__sample_vvc.mp4").read_bytes()).hexdigest()
