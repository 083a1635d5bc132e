"""Clips of a data set as one picture: a row of frames each, with its caption."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.errors import UserError
from data_pipeline.records import ClipRecord, LatentRecord
from data_pipeline.shards import ShardReader
from data_pipeline.video_io import decode_record

FRAME_HEIGHT, FRAMES, TEXT_WIDTH, MARGIN = 96, 4, 330, 6
MAX_FRAME_WIDTH = 200
FONT_SIZE, CHARACTERS, LINES = 13, 46, 6


def contact_sheet(reader: ShardReader, numbers: list[int]) -> Image.Image:
    """Records in rows. Latents show their first three channels as red, green and blue. A record that cannot be read is
    a row that says why."""
    return draw_sheet([_read(reader, number) for number in numbers])


def draw_sheet(clips: Sequence[tuple[UInt8[np.ndarray, "_ _ _ 3"], str]]) -> Image.Image:
    """(frames, text) in rows."""
    rows = [_row(frames, text) for frames, text in clips]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def pick(reader: ShardReader, split: str, count: int) -> list[int]:
    """`count` record numbers of a split, evenly spaced. Raises `UserError` for a split without records or no count."""
    if count < 1:
        raise UserError(f"the number of records is {count}, but must be at least 1")
    records = reader.index.select(split)
    if not len(records):
        raise UserError(f'{reader.directory} has no records in its "{split}" split')
    return records[np.unique(np.linspace(0, len(records) - 1, count).round().astype(int))].tolist()


def _read(reader: ShardReader, number: int) -> tuple[UInt8[np.ndarray, "_ _ _ 3"], str]:
    try:
        record = reader.read(number)
        return _frames(record), _text(record)
    except UserError as error:
        return np.full((1, FRAME_HEIGHT, FRAME_HEIGHT, 3), 96, np.uint8), f"record {number}: {error}"


def _row(frames: UInt8[np.ndarray, "T Y X 3"], text: str) -> Image.Image:
    pictures = [
        _scaled(frames[i]) for i in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    ]
    width = TEXT_WIDTH + FRAMES * (MAX_FRAME_WIDTH + MARGIN)
    row = Image.new("RGB", (width, FRAME_HEIGHT + MARGIN), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + MARGIN
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, CHARACTERS)][:LINES]
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(row).multiline_text((max(left, width - TEXT_WIDTH), 0), "\n".join(lines), "black", font, spacing=2)
    return row


def _frames(record: ClipRecord | LatentRecord) -> UInt8[np.ndarray, "T Y X 3"]:
    if isinstance(record, ClipRecord):
        return decode_record(record)[0]
    latents = record.latent_array().astype(np.float32)[..., :3]
    latents = np.repeat(latents, 3, axis=-1)[..., :3] if latents.shape[-1] < 3 else latents
    low, high = np.percentile(latents, (1, 99), axis=(0, 1, 2))
    return (255 * np.clip((latents - low) / np.maximum(high - low, 1e-6), 0, 1)).astype(np.uint8)


def _text(record: ClipRecord | LatentRecord) -> str:
    if isinstance(record, ClipRecord):
        size = f"{record.crop[3]}x{record.crop[2]}"
    else:
        size = "x".join(str(side) for side in record.shape)
    captions = [f"{caption.source}: {caption.text}" for caption in record.captions] or ["(no caption)"]
    name = Path(record.clip_id).name
    return "\n".join([*captions, f"{size}, {record.duration_s:.1f} s, {record.split}, {name}"])


def _scaled(frame: np.ndarray) -> Image.Image:
    scale = min(FRAME_HEIGHT / frame.shape[0], MAX_FRAME_WIDTH / frame.shape[1])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    return Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC)
