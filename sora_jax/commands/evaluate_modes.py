"""`sora-jax evaluate --metric modes`: held-out clips of a synthetic world, part hidden, made again in every mode.

    sora-jax evaluate --metric modes --run RUN --real CLIPS --out modes.json [--steps 20 --guidance 3]

For each mode, how often the probes see the object that the prompt names and find it where the truth has it; beside it
the truth through the autoencoder (the best that there is) and holding the nearest known frame (no motion known). And
medians of the seam ratio (docs/prompting.md) and, for a loop, of that of the step from its last frame to its first.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from data_pipeline.synthetic.cycles import CYCLES
from data_pipeline.video_io import decode_record
from sora_jax.commands.shared import shown
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.evaluation.mode_obedience import BEHIND, Case, held, judge_case, make_cases, tally
from sora_jax.evaluation.mode_sheet import draw_modes
from sora_jax.evaluation.prompts import Claim, parse_prompt, vocabulary_of
from sora_jax.generation.loading import TrainedRun, load_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that this metric adds to `sora-jax evaluate`."""
    parser.add_argument(
        "--run", type=Path, help="a trained generator's run, to sample from; for captions a captioner's"
    )
    parser.add_argument("--latents", type=Path, help="the run's latents, if they have moved since training")
    parser.add_argument("--steps", type=int, default=20, help="solver steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--solver", default="unipc", help="the solver (default: %(default)s)")


def measure_modes(args: argparse.Namespace) -> dict[str, Any]:
    """The table, and a sheet beside `--out` with one result of each mode."""
    if args.run is None:
        raise UserError("--metric modes needs --run RUN, a trained generator's run")
    sampling = SamplingConfig(args.steps, args.guidance, args.solver)
    run = load_run(args.run, latents=args.latents)
    cases, vocabulary = read_cases(args, run)
    results = sample_cases(cases, run, sampling)
    sheet = args.out.with_name(f"{args.out.stem}_sheet.png")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_modes(one_of_each(cases, results), sheet)
    groups: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for case, result in shown(zip(cases, results, strict=True), len(cases), "probing"):
        groups[case.mode]["generated"].append(judge_case(case, result, vocabulary))
        holding = held(case)
        if holding is not None:
            groups[case.mode]["holding"].append(judge_case(case, holding, vocabulary))
        if case.truth is not None and case.is_determined and parse_prompt(case.prompt)[0].colour == case.truth_colour:
            decoded = run.sampler.codec.decode(run.sampler.codec.encode(case.truth[None]))[0]
            groups[case.mode]["autoencoded"].append(judge_case(case, decoded, vocabulary))
    scores = {mode: {who: tally(found) for who, found in by.items()} for mode, by in groups.items()}
    settings = {"steps": args.steps, "guidance": args.guidance, "solver": args.solver}
    return {"run": str(args.run), "step": run.step, **settings, "scores": scores, "sheet": sheet.name}


def read_cases(args: argparse.Namespace, run: TrainedRun) -> tuple[list[Case], Any]:
    """Every mode of up to `--num_real` clips that show one moving object, and of as many that show it behind a
    bar; and the vocabulary of them all."""
    reader = ShardReader(args.real, "clip")
    c, clips = run.sampler.codec.config.temporal_compression, []
    left = {False: args.num_real, True: args.num_real}
    for number in reader.index.select(args.split):
        record = reader.read(int(number))
        caption = record.captions[0].text if record.captions else ""
        claims = parse_prompt(caption)
        if len(claims) != 1 or not _moves_steadily(claims[0], caption) or not left[BEHIND in caption]:
            continue
        frames = decode_record(record)[0]
        frames = frames[: 1 + (len(frames) - 1) // c * c]
        if len(frames) > 1 + c:
            clips.append((frames, caption, record.fps))
            left[BEHIND in caption] -= 1
    if not clips:
        raise UserError(
            f"no {args.split} clip of {args.real} shows one moving object: render one of the synthetic worlds"
        )
    vocabulary = vocabulary_of(claim for _, caption, _ in clips for claim in parse_prompt(caption))
    cases = []
    for frames, caption, fps in shown(clips, len(clips), "encoding"):
        cases += make_cases(run.sampler.codec, run.sampler.layout, frames, caption, fps, vocabulary)
    return cases, vocabulary


def _moves_steadily(claim: Claim, caption: str) -> bool:
    """Straight, or in a cycle; what falls has no direction either, but another speed in each frame."""
    return claim.direction is not None or any(does in caption for does in CYCLES.values())


def sample_cases(cases: list[Case], run: TrainedRun, sampling: SamplingConfig) -> list[np.ndarray]:
    """The result of each case, whose number is its seed."""
    requests = [case.request(seed) for seed, case in enumerate(cases)]
    results: list[Any] = [None] * len(cases)
    generated = run.sampler.generate(run.params, run.frozen, requests, sampling)
    for number, frames in shown(generated, len(cases), "sampling"):
        results[number] = cases[number].result(frames)
    return results


def one_of_each(cases: list[Case], results: list[np.ndarray]) -> list[tuple]:
    """The first result of each mode, as rows of a sheet."""
    first = {case.mode: number for number, case in reversed(list(enumerate(cases)))}
    numbers = sorted(first.values())
    return [(cases[n].mode, cases[n].prompt, results[n], ~cases[n].is_new) for n in numbers]
