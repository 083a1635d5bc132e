"""show draws clips or latents of a data set, with their captions, on one picture

sora-jax data show --data DIR --out sheet.png --num 12
"""

import argparse
from pathlib import Path
from typing import Any

from data_pipeline.contact_sheet import contact_sheet, pick
from data_pipeline.errors import UserError
from data_pipeline.records import SPLITS
from data_pipeline.shards import ShardReader

ENDINGS = {".png": 2**31 - 1, ".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Formats, and the most rows of pixels that Pillow writes of each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax data show`."""
    parser.add_argument("--data", type=Path, required=True, help="folder of a data set: clips or latents")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--num", type=int, default=12, help="records, evenly spaced over the split")
    parser.add_argument("--split", choices=SPLITS, default="train")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draws, and returns which records are on the picture."""
    if args.out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {args.out} must end in one of {', '.join(ENDINGS)}")
    reader = ShardReader(args.data)
    numbers = pick(reader, args.split, args.num)
    sheet = contact_sheet(reader, numbers)
    if sheet.height > (limit := ENDINGS[args.out.suffix.lower()]):
        raise UserError(
            f"the sheet of {len(numbers)} records is {sheet.height} pixels high, and {args.out.suffix} holds {limit}: "
            "lower --num, or write a .png"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out)
    return {"records": numbers, "out": args.out}
