"""`sora-jax evaluate --metric seams`: steps across the seams of samples that were made from clips, and their drift."""

import argparse
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sora_jax.evaluation.inputs import read_sample, read_samples
from sora_jax.evaluation.seams import colour_drift, measure_seams


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Of the samples of `--generated` whose line names seams. Raises UserError if none does."""
    if args.generated is None:
        raise UserError("--metric seams needs --generated DIR, the folder that `sora-jax sample --prompts` wrote")
    entries = [entry for entry in read_samples(args.generated) if entry.get("seams") or entry.get("loops")]
    if not entries:
        raise UserError(f"no sample of {args.generated} was made from a clip: its lines name no seams")
    rows = [describe(entry, read_sample(args.generated, entry)) for entry in entries]
    ratios = [ratio for row in rows for ratio in row["seam_ratios"]]
    loops = [row["loop_ratio"] for row in rows if "loop_ratio" in row]
    drifts = [row["colour_drift"][-1] for row in rows if row.get("colour_drift")]
    psnr = [entry["known_psnr"] for entry in entries if entry.get("known_psnr") is not None]
    return {
        "generated": str(args.generated),
        "num_samples": len(rows),
        "seam_ratio": _spread(ratios),
        "seams_beyond_every_step": sum(row["beyond"] for row in rows),
        "num_seams": len(ratios),
        "loop_ratio": _spread(loops),
        "colour_drift_at_the_end": _spread(drifts),
        "autoencoder_psnr_of_known_frames": float(np.mean(psnr)) if psnr else None,
        "samples": rows,
    }


def describe(entry: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
    """The seams of one sample; how its colours drift, if it goes on from a clip for several windows."""
    found = measure_seams(frames, entry["seams"])
    row: dict[str, Any] = {"file": entry["file"], "prompt": entry["prompt"]}
    row |= {"seam_ratios": [round(r, 3) for r in found.ratios], "beyond": found.beyond}
    if entry.get("loops"):
        row["loop_ratio"] = round(found.loop_ratio, 3)
    if entry.get("extend") == "forward":
        seam, step = entry["seams"][0], entry["window"] - 1 - entry["overlap"]  # new frames of a window
        drift = colour_drift(frames, [0, *range(seam, len(frames), step), len(frames)])
        row["colour_drift"] = [round(float(d), 2) for d in drift]
    return row


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": float(np.median(values)), "largest": float(np.max(values))}
