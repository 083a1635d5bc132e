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

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


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
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(reader, numbers).save(args.out)
    return {"records": numbers, "out": args.out}
