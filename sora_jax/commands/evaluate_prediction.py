"""`sora-jax evaluate --metric prediction`: PSNR, SSIM and LPIPS of how a generator goes on with real clips.

    sora-jax evaluate --metric prediction --run RUN --real CLIPS --out prediction.json [--context K --trials 4] \\
        [--lpips DIR]

The first `--context` frames of each held-out clip are known (half of it, without), cut to `--max_frames` (the length of
the run's previews, without); the rest is made `--trials` times. Beside `--out`: the curves by frame, and a sheet of the
truth with one future below it.
"""

import argparse
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.shards import Manifest
from sora_jax.commands.shared import check_least, shown
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.evaluation.dimensions import mean_of
from sora_jax.evaluation.figures import comparison_sheet
from sora_jax.evaluation.prediction import (
    Case,
    autoencoded,
    best_of,
    draw_curves,
    held,
    mean_over,
    measure_futures,
    read_cases,
)
from sora_jax.generation.loading import TrainedRun, load_run
from sora_jax.models.lpips_weights import load_lpips

NUM_SHOWN = 4
Futures = list[UInt8[np.ndarray, "_ _ _ 3"]]
"""The new frames of each clip; clips differ in shape."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that this metric adds to `sora-jax evaluate`."""
    group = parser.add_argument_group("--metric prediction")
    group.add_argument("--context", type=int, help="known frames of each clip (default: half)")
    group.add_argument("--trials", type=int, default=4, help="futures of each clip (default: %(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Means with their intervals over the clips, and the curves by frame."""
    if args.run is None:
        raise UserError("--metric prediction needs --run RUN, a trained generator's run")
    check_least(args, trials=1)
    loaded = load_lpips(args.lpips_net, args.lpips) if args.lpips else None
    run = load_run(args.run, args.step, ema=not args.raw, latents=args.latents)
    cases, num_short = read_cases(run, args.real, args.split, args.num_real, args.max_frames, args.context)
    trials = sample_trials(run, cases, args)
    measured = [measure_futures(cases, futures, loaded) for futures in shown(trials, len(trials), "comparing")]
    groups = {"mean": mean_over(measured), "best": best_of(measured)}
    groups["holding"] = measure_futures(cases, [held(case) for case in cases], loaded)
    groups["autoencoded"] = measure_futures(cases, list(autoencoded(run, cases)), loaded)
    settings = {name: getattr(args, name) for name in ("steps", "guidance", "solver", "seed", "trials")}
    settings |= {"known_frames": cases[0].context, "new_frames": len(cases[0].truth)}
    hashes = {
        "real": hash_of([Manifest.load(args.real).fingerprint, *(case.number for case in cases)]),
        "checkpoint": hash_of(run.identity),
        "settings": hash_of(settings),
        "lpips": loaded.fingerprint if loaded else "none",
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure, sheet = (args.out.with_name(f"{args.out.stem}_{name}.png") for name in ("curves", "sheet"))
    draw_curves(groups, figure)
    Image.fromarray(draw_sheet(cases, trials[0])).save(sheet)
    return {
        "run": str(args.run),
        "checkpoint": run.identity,
        "num_clips": len(cases),
        "num_short": num_short,
        "protocol": f"{settings['known_frames']} frames known, {settings['new_frames']} made, {args.trials} futures",
        "settings": settings,
        "hash": hash_of(hashes),
        "hashes": hashes,
        "scores": {
            name: {
                group: dataclasses.asdict(mean_of(curves[name].mean(axis=1).tolist()))
                for group, curves in groups.items()
            }
            for name in groups["mean"]
        },
        "by_frame": {
            name: {group: curves[name].mean(axis=0).tolist() for group, curves in groups.items()}
            for name in groups["mean"]
        },
        "lpips_weights": None if loaded is None else {"net": loaded.net, "fingerprint": loaded.fingerprint},
        "figure": figure.name,
        "sheet": sheet.name,
    }


def hash_of(value: Any) -> str:
    """The SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sample_trials(run: TrainedRun, cases: list[Case], args: argparse.Namespace) -> list[Futures]:
    """[trial][clip] → new frames; future t of clip i has the seed `--seed` + t x clips + i."""
    requests = [
        case.request(args.seed + t * len(cases) + i) for t in range(args.trials) for i, case in enumerate(cases)
    ]
    results: list[Any] = [None] * len(requests)
    sampling = SamplingConfig(args.steps, args.guidance, args.solver)
    for number, frames in shown(
        run.sampler.generate(run.params, run.frozen, requests, sampling), len(requests), "sampling futures"
    ):
        results[number] = cases[number % len(cases)].future(frames)
    return [results[t * len(cases) : (t + 1) * len(cases)] for t in range(args.trials)]


def draw_sheet(cases: list[Case], futures: Futures) -> np.ndarray:
    """Of a few clips of the first one's size: the truth's new frames, the future's, and the error."""
    same = [i for i, case in enumerate(cases) if case.clip.shape == cases[0].clip.shape]
    chosen = np.unique(np.linspace(0, len(same) - 1, NUM_SHOWN).round().astype(int))
    return np.concatenate([comparison_sheet(cases[same[i]].truth, futures[same[i]]) for i in chosen])
