"""`sora-jax evaluate --metric captions`: how often a captioner's captions of held-out synthetic clips are right.

    sora-jax evaluate --metric captions --run RUN --real CLIPS --out captions.json

Colour, shape and direction of every object, their number, and all of it, each as a share with its 95% interval; beside
them what the caption of any other clip would score. A sheet beside `--out` shows some clips with what was written.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.contact_sheet import draw_sheet
from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from data_pipeline.video_io import decode_record
from sora_jax.commands.shared import shown
from sora_jax.evaluation.caption_accuracy import accuracy, compare, true_claims
from sora_jax.evaluation.inputs import clip_numbers
from sora_jax.evaluation.obedience import chance
from sora_jax.training.trained_captioner import TrainedCaptioner

NUM_SHOWN = 12


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The shares, and each clip's captions. Raises UserError for a run of something else or clips without claims."""
    if args.run is None:
        raise UserError("--metric captions needs --run RUN, a trained captioner's run")
    captioner = TrainedCaptioner.from_run(args.run)
    reader = ShardReader(args.real, "clip")
    numbers = clip_numbers(reader, args.split)
    numbers = numbers[np.linspace(0, len(numbers) - 1, min(args.num_real, len(numbers))).round().astype(int)]
    truths = {int(number): true_claims(reader.read(int(number)).captions) for number in numbers}
    claimed = [number for number, claims in truths.items() if claims]
    if not claimed:
        raise UserError(
            f"no caption of {args.real} makes a claim that can be checked, such as 'a red circle moves left': evaluate "
            "on clips of a synthetic world"
        )
    frames = (decode_record(reader.read(number))[0] for number in claimed)
    written = list(shown(captioner.stream_captions(frames), len(claimed), "captioning"))
    compared = [compare(truths[number], text) for number, text in zip(claimed, written, strict=True)]
    given = [next(iter(reader.read(number).captions)).text for number in claimed]
    rows = zip(claimed, given, written, compared, strict=True)
    by_chance = chance([truths[n] for n in claimed], [truths[n] for n in claimed])
    scores = {name: {"chance": by_chance.get(name)} | one.as_dict() for name, one in accuracy(compared).items()}
    return {
        "run": str(args.run),
        "step": captioner.step,
        "num_clips": len(claimed),
        "num_without_claims": len(truths) - len(claimed),
        "scores": scores,
        "sheet": _draw(args.out, reader, claimed, given, written),
        "clips": [{"record": n, "given": a, "written": b, "exact": one.is_exact} for n, a, b, one in rows],
    }


def _draw(out: Path, reader: ShardReader, numbers: list[int], given: list[str], written: list[str]) -> str:
    """A sheet of some clips; its name."""
    path = out.with_name(f"{out.stem}_sheet.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = np.unique(np.linspace(0, len(numbers) - 1, NUM_SHOWN).round().astype(int))
    texts = [f"given: {given[i]}\nwritten: {written[i]}" for i in chosen]
    draw_sheet([(decode_record(reader.read(numbers[i]))[0], t) for i, t in zip(chosen, texts, strict=True)]).save(path)
    return path.name
