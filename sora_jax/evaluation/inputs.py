"""What is measured: samples with their prompts, and real clips with their captions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from data_pipeline.video_io import Frames, decode, decode_record

Captioned = tuple[str, UInt8[np.ndarray, "_ _ _ 3"]]
"""(caption, frames); the clips of a list differ in shape."""
SAMPLES = "samples.jsonl"


def read_samples(directory: Path) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl`: {"file", "prompt", …}. Raises `UserError` if there are none."""
    path = directory / SAMPLES
    if not path.is_file():
        raise UserError(
            f"{directory} has no samples.jsonl: point --generated at what `sora-jax sample --prompts` wrote"
        )
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        missing = [e for e in entries if not all(isinstance(e.get(name), str) for name in ("file", "prompt"))]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): sample again") from error
    if missing or not entries:
        raise UserError(f"{path} has {len(entries)} samples, {len(missing)} without file or prompt: sample again")
    if (different := len({entry["file"] for entry in entries})) < len(entries):
        raise UserError(f"{path} has {len(entries)} samples in {different} files: sample again")
    return entries


def read_sample(directory: Path, entry: dict[str, Any]) -> Frames:
    """The frames of one sample. Raises `UserError` if its file is missing."""
    path = directory / entry["file"]
    if not path.is_file():
        raise UserError(f"{directory}/samples.jsonl names {entry['file']}, which is not there: sample again")
    return decode(path)[0]


def read_real(directory: Path, split: str, most: int, max_frames: int = 0) -> list[Captioned]:
    """(first caption, frames) of up to `most` clips of a split, evenly spread over it; `max_frames`, if not 0,
    is the most frames of each."""
    reader = ShardReader(directory, "clip")
    numbers = clip_numbers(reader, split)
    numbers = numbers[np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)]
    records = (reader.read(int(number)) for number in numbers)
    return [
        (record.captions[0].text if record.captions else "", decode_record(record)[0][: max_frames or None].copy())
        for record in records
    ]


def clip_numbers(reader: ShardReader, split: str) -> Int64[np.ndarray, " n"]:
    """The records of a split. Raises `UserError` if it has none."""
    numbers = reader.index.select(split)
    if not len(numbers):
        raise UserError(
            f"{reader.directory} has no {split} clips: build it from more groups, or choose another --split"
        )
    return numbers
