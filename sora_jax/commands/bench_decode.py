"""`sora-jax bench decode`: decoded RGB frames a second of clip shards in one thread, beside FFmpeg's own program.

FFmpeg does the same work on the same files, `-threads 1 -vf scale,format=rgb24 -f null -`, started once for each
codec and size (concat demuxer). Rounds alternate. Seconds of the processor are compared, so that other work on the
machine does not count. FFmpeg's default conversion to RGB is a fast one; ours is exact, so that all
processors give the same bytes, and FFmpeg is measured with our flags too.
"""

import argparse
import collections
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from data_pipeline.contact_sheet import pick
from data_pipeline.errors import UserError
from data_pipeline.records import ClipRecord
from data_pipeline.shards import ShardReader
from data_pipeline.video_io import iterate_record

OUR_FLAGS = "bicubic+accurate_rnd+full_chroma_int+bitexact"  # as data_pipeline/colour.py converts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax bench decode`."""
    parser.add_argument("--data", type=Path, required=True, help="clip shards")
    parser.add_argument("--ffmpeg", required=True, help="the program")
    parser.add_argument("--num", type=int, default=100, help="clips, evenly spaced over the training split")
    parser.add_argument("--rounds", type=int, default=3, help="of both, in turn; the best of each counts")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Frames a second of the processor, of both, and their ratio."""
    reader = ShardReader(args.data, "clip")
    records = [reader.read(number) for number in pick(reader, "train", args.num)]
    ours, theirs, exact, frames = [], [], [], 0
    with tempfile.TemporaryDirectory() as scratch:
        lists = _lists(records, Path(scratch))
        for _ in range(args.rounds):
            start = time.process_time()
            frames = sum(1 for record in records for _ in iterate_record(record))
            ours.append(time.process_time() - start)
            theirs.append(sum(_ffmpeg_seconds(args.ffmpeg, path, *size, "bicubic") for path, size in lists))
            exact.append(sum(_ffmpeg_seconds(args.ffmpeg, path, *size, OUR_FLAGS) for path, size in lists))
    return {
        "clips": len(records),
        "frames": frames,
        "frames_per_s": frames / min(ours),
        "ffmpeg_frames_per_s": frames / min(theirs),
        "ratio": min(theirs) / min(ours),
        "ffmpeg_exact_frames_per_s": frames / min(exact),
        "ratio_exact": min(exact) / min(ours),
    }


def _lists(records: list[ClipRecord], scratch: Path) -> list[tuple[Path, tuple[int, int]]]:
    """(concat list, (height, width)) for each size."""
    groups = collections.defaultdict(list)
    for number, record in enumerate(records):
        path = scratch / f"{number:06d}.video"
        path.write_bytes(record.video)
        groups[record.height, record.width].append(path)
    lists = []
    for size, paths in groups.items():
        text = "".join(f"file '{path}'\n" for path in paths)
        lists.append((scratch / f"{size[0]}x{size[1]}.txt", size))
        lists[-1][0].write_text(text)
    return lists


def _ffmpeg_seconds(program: str, path: Path, height: int, width: int, flags: str) -> float:
    """Seconds of the processor. Raises `UserError` if FFmpeg fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = ["-nostdin", "-v", "error", "-threads", "1", "-filter_threads", "1", "-f", "concat", "-safe", "0"]
    command = [
        program,
        *options,
        "-i",
        str(path),
        "-vf",
        f"scale={width}:{height}:flags={flags},format=rgb24",
        "-f",
        "null",
        "-",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{program} failed: {done.stderr.strip()[-200:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
