"""`sora-jax evaluate`: measure generated videos, or an autoencoder's reconstructions.

    sora-jax evaluate --metric probes --generated SAMPLES --real CLIPS [--autoencoder RUN] --out evaluation.json
    sora-jax evaluate --metric modes --run RUN --real CLIPS --out modes.json
    sora-jax evaluate --metric prediction --run RUN --real CLIPS --out prediction.json [--context K] [--lpips DIR]
    sora-jax evaluate --metric gallery --run RUN --real CLIPS --out gallery.json
    sora-jax evaluate --metric reconstruction --autoencoder RUN --real CLIPS --out reconstruction.json [--lpips DIR] \
        [--beside ANOTHER]
    sora-jax evaluate --metric seams --generated SAMPLES --out seams.json
    sora-jax evaluate --metric fvd --real CLIPS --generated SAMPLES --protocol NAME --weights FILE --out fvd.json
    sora-jax evaluate --metric clip --generated SAMPLES --weights clip.safetensors --out clip.json
    sora-jax evaluate --metric captions --run CAPTIONER --real CLIPS --out captions.json
    sora-jax evaluate --metric expansion --expand RUN --real CLIPS --out expansion.json
    sora-jax evaluate --metric synth-fd,synth-fvd,dimensions --run RUN --real CLIPS --num_generated 96 --out synth.json
    sora-jax evaluate convert-weights --kind KIND --weights FILE --out FILE.safetensors

`probes`: how often samples of a synthetic world obey their prompts, beside real held-out clips, the same clips through
the autoencoder (the best that samples can look), and chance. `modes`: the same where a still, a clip's beginning, end
or both, or all but a region are given, and whether the rest goes on as the hidden truth does. `prediction`: how far the
frames that follow on a clip's first ones are from the clip's own, in PSNR, SSIM and LPIPS. `gallery`: every mode on
real clips, to be looked at, and whether known pixels are the source's (docs/prompting.md). `reconstruction`: PSNR, SSIM
and flicker on held-out clips with a sheet of each, what each channel of the latents carries, and LPIPS with the weights
that lie in a folder (docs/autoencoder.md); of another autoencoder on the very same frames, too. `seams`: how large the
step is where known and new frames of a sample meet (docs/prompting.md). `fid` and `fvd`: the distance to real images or
videos by a named protocol (docs/evaluation.md). `clip`: how well frames fit their prompt, by CLIP. `captions`: how
often a captioner's captions of a synthetic world are right; `expansion`: how often a long prompt keeps what the short
one says that it was made of (docs/captioning.md).
"""

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.errors import UserError
from sora_jax.commands import (
    evaluate_captions,
    evaluate_clip,
    evaluate_dimensions,
    evaluate_embedded,
    evaluate_expansion,
    evaluate_features,
    evaluate_follow,
    evaluate_gallery,
    evaluate_modes,
    evaluate_prediction,
    evaluate_run,
    evaluate_scaling,
    evaluate_seams,
    evaluate_simulation,
    evaluate_weights,
)
from sora_jax.commands.shared import progress, shown, write_result
from sora_jax.config import choose
from sora_jax.evaluation.figures import comparison_sheet, frame_strip
from sora_jax.evaluation.inputs import Captioned, read_real, read_sample, read_samples
from sora_jax.evaluation.latent_health import draw_health
from sora_jax.evaluation.obedience import Judged, chance, judge_video, tally
from sora_jax.evaluation.prompts import parse_prompt, vocabulary_of
from sora_jax.evaluation.reconstruction import Reconstruction, Scores, means, reconstruct, reconstruct_same, scores
from sora_jax.models.lpips_weights import load_lpips
from sora_jax.training.trained_codec import codec_to_measure

NUM_EXAMPLES = 6
NUM_REAL = 300
LISTS = ("samples", "clips")
"""What is written to `--out` alone: a row for each video."""

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `sora-jax evaluate`, and the verbs within it."""
    verbs = parser.add_subparsers(dest="evaluate_verb", metavar="VERB", help="instead of --metric")
    for name, module in VERBS.items():
        child = verbs.add_parser(name, help=str(module.__doc__).splitlines()[0], description=module.__doc__)
        module.add_arguments(child)
        child.set_defaults(evaluate_run=module.run)
    parser.add_argument("--metric", metavar="NAME,…", help=f"one or more of {', '.join(METRICS)}")
    parser.add_argument("--generated", type=Path, metavar="DIR", help="what `sora-jax sample --prompts` wrote")
    parser.add_argument(
        "--real", type=Path, metavar="DIR", help="clip shards, from `sora-jax data build` (fid, fvd: any folder)"
    )
    parser.add_argument("--autoencoder", type=Path, metavar="RUN", help="a trained autoencoder's run or export")
    parser.add_argument(
        "--beside", type=Path, metavar="RUN", action="append", default=[], help="another, on the same frames"
    )
    parser.add_argument("--tile", type=int, default=0, help="code frames in tiles of so many pixels; 0: whole")
    parser.add_argument("--lpips", type=Path, metavar="DIR", help="the published weights of LPIPS: measures it too")
    parser.add_argument("--lpips_net", default="vgg", help="its backbone: alex, vgg or squeeze (default: %(default)s)")
    parser.add_argument("--split", default="heldout", help="which clips of --real (default: %(default)s)")
    parser.add_argument(
        "--num_real", type=int, help=f"at most this many of them (default: {NUM_REAL}; fid, fvd: the protocol's)"
    )
    parser.add_argument("--max_frames", type=int, default=0, help="only so many frames of each of them; 0: all")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    evaluate_modes.add_arguments(parser)
    metrics = (evaluate_prediction, evaluate_features, evaluate_dimensions, evaluate_expansion)
    for module in (*metrics, evaluate_run, evaluate_follow):
        module.add_arguments(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, writes `--out`, and returns its numbers without the lists; or does what a verb within says."""
    if args.evaluate_verb:
        return args.evaluate_run(args)
    for name in ("metric", "out"):
        if getattr(args, name) is None and not (name == "out" and args.follow):
            raise UserError(f"evaluate needs --{name}; `sora-jax evaluate --help` lists the metrics and the verbs")
    metrics = args.metric.split(",")
    for name in metrics:
        choose(METRICS, name, "--metric")
    if args.num_real is not None and args.num_real < 1:
        raise UserError(f"--num_real is {args.num_real}: at least 1 real clip is needed")
    if args.real is None and set(metrics) - WITHOUT_REAL:
        raise UserError(f"--metric {args.metric} needs --real DIR, clip shards from `sora-jax data build`")
    if args.follow:
        return evaluate_follow.run(args, metrics, measure_all)
    result = measure_all(args, metrics)
    write_result(args.out, result)
    return without_lists(result) | {"out": str(args.out)}


def measure_all(args: argparse.Namespace, metrics: Sequence[str]) -> dict[str, Any]:
    """What one metric found; of several, what each did under its name. With `--run` samples are drawn first."""
    of_each = evaluate_features.split_published(args, metrics)
    if args.generated is None and args.run is not None and SAMPLES.intersection(metrics):
        args = changed(args, generated=evaluate_run.draw(args, metrics))
    real = {} if args.real is None else {"real": str(args.real), "split": args.split}
    found = {}
    for name in metrics:
        num_real = args.num_real or (None if name in evaluate_features.METRICS else NUM_REAL)
        found[name] = METRICS[name](changed(args, metric=name, num_real=num_real, **of_each.get(name, {})))
    return {"metric": ",".join(metrics)} | real | (found if len(metrics) > 1 else found[metrics[0]])


def changed(args: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    """The options with other values."""
    return argparse.Namespace(**vars(args) | changes)


def without_lists(result: dict[str, Any]) -> dict[str, Any]:
    """Less the rows of each video, which are for the file alone."""
    kept = {name: value for name, value in result.items() if name not in LISTS}
    return {n: without_lists(v) if n in METRICS and isinstance(v, dict) else v for n, v in kept.items()}


def measure_probes(args: argparse.Namespace) -> dict[str, Any]:
    """Obedience of the samples; of real clips, plain and through the autoencoder; and chance."""
    if args.generated is None:
        raise UserError("--metric probes needs --generated DIR, the folder that `sora-jax sample --prompts` wrote")
    entries = read_samples(args.generated)
    real = _real(args)
    prompts = [parse_prompt(entry["prompt"]) for entry in entries]
    world = [parse_prompt(caption) for caption, _ in real]
    if not any(prompts) or not any(world):
        which = args.real if any(prompts) else args.generated
        raise UserError(f"no caption of {which} makes a claim that the probes know, such as 'a red circle moves left'")
    vocabulary = vocabulary_of(claim for claims in prompts + world for claim in claims)
    samples = ((entry["prompt"], read_sample(args.generated, entry)) for entry in entries)
    judged = judge_all(samples, len(entries), vocabulary, "samples")
    groups = {"generated": tally(judged), "real": tally(judge_all(real, len(real), vocabulary, "real clips"))}
    result: dict[str, Any] = {"generated": str(args.generated), "num_samples": len(judged)}
    if args.autoencoder is not None:
        with progress("reconstructing") as told:
            originals = [frames for _, frames in real]
            pairs, _ = reconstruct(codec_to_measure(args.autoencoder), originals, on_progress=told)
        decoded = [(caption, pair.decoded) for (caption, _), pair in zip(real, pairs, strict=True)]
        groups["autoencoded"] = tally(judge_all(decoded, len(decoded), vocabulary, "reconstructions"))
        captions = [caption for caption, _ in real]
        result |= describe_reconstructions(captions, pairs, scores(pairs, None), args.out)
    moving = [claims for claims, (_, frames) in zip(world, real, strict=True) if len(frames) > 1]
    by_chance = chance(prompts, moving or world)
    result["scores"] = {
        name: {"chance": by_chance[name]} | {group: shares[name].as_dict() for group, shares in groups.items()}
        for name in by_chance
    }
    verdicts = [{"obeyed": one.obeyed and bool(one.claims), "verdicts": one.as_rows()} for one in judged]
    return result | {"samples": [entry | one for entry, one in zip(entries, verdicts, strict=True)]}


def measure_reconstruction(args: argparse.Namespace) -> dict[str, Any]:
    """PSNR, SSIM, flicker, and LPIPS if asked for, of an autoencoder on real clips; the health of its latents; and the
    same measures of others beside it."""
    if args.autoencoder is None:
        raise UserError("--metric reconstruction needs --autoencoder RUN, a trained autoencoder's run or export")
    others = {str(path): codec_to_measure(path) for path in args.beside}
    loaded = load_lpips(args.lpips_net, args.lpips) if args.lpips else None
    codec = codec_to_measure(args.autoencoder).in_tiles(args.tile)
    real = _real(args)
    with progress("reconstructing") as told:
        pairs, health = reconstruct(codec, [frames for _, frames in real], on_progress=told)
        beside = {name: reconstruct_same(other, pairs, name, told) for name, other in others.items()}
    captions, rows = [caption for caption, _ in real], scores(pairs, loaded)
    rows_beside = {name: scores(others_pairs, loaded) for name, others_pairs in beside.items()}
    result = describe_reconstructions(captions, pairs, rows, args.out)
    if loaded is not None:
        result["reconstruction"]["lpips_weights"] = {"net": loaded.net, "fingerprint": loaded.fingerprint}
    if beside:
        result["beside"] = {name: means(rows) for name, rows in rows_beside.items()}
    result["latents"] = health.describe() | {"figure": f"{frames_folder(args.out).name}/latents.png"}
    draw_health(result["latents"], args.out.parent / result["latents"]["figure"])
    sheets = draw_sheets(pairs, list(beside.values()), args.out)
    clips = []
    for i, (caption, row) in enumerate(zip(captions, rows, strict=True)):
        own = {"caption": caption, "sheet": sheets[i], "frames": len(pairs[i].original), **row}
        clips.append(own | ({"beside": {name: rows[i] for name, rows in rows_beside.items()}} if beside else {}))
    return result | {"clips": clips}


VERBS = {"convert-weights": evaluate_weights, "train-embedded": evaluate_embedded, "scaling": evaluate_scaling}
METRICS = {
    "probes": measure_probes,
    "modes": evaluate_modes.measure_modes,
    "prediction": evaluate_prediction.measure,
    "gallery": evaluate_gallery.measure,
    "reconstruction": measure_reconstruction,
    "seams": evaluate_seams.measure,
    "simulation": evaluate_simulation.measure,
    "dimensions": evaluate_dimensions.measure,
    "clip": evaluate_clip.measure,
    "captions": evaluate_captions.measure,
    "expansion": evaluate_expansion.measure,
    **dict.fromkeys(evaluate_features.METRICS, evaluate_features.measure),
}
WITHOUT_REAL = {"seams", "dimensions", "clip"}
SAMPLES = {"probes", "simulation", "dimensions", "clip", *evaluate_features.METRICS}
"""Metrics of samples: with `--run` they are drawn."""


def judge_all(videos: Iterable[Captioned], total: int, vocabulary, what: str) -> list[Judged]:
    """Every video judged by its caption."""
    return [judge_video(text, frames, vocabulary) for text, frames in shown(videos, total, f"probing {what}")]


def _real(args: argparse.Namespace) -> list[Captioned]:
    if args.max_frames < 0:
        raise UserError(f"--max_frames is {args.max_frames}, but must be at least 1, or 0 for all")
    return read_real(args.real, args.split, args.num_real, args.max_frames)


def describe_reconstructions(
    captions: Sequence[str], pairs: Sequence[Reconstruction], rows: Sequence[Scores], out: Path
) -> dict[str, Any]:
    """The means of the clips' scores, and a few examples as strips of frames in a folder beside `out`."""
    folder = frames_folder(out)
    examples = []
    folder.mkdir(parents=True, exist_ok=True)
    long = [i for i, pair in enumerate(pairs) if len(pair.original) > 1] or list(range(len(pairs)))
    for n, i in enumerate(np.unique(np.linspace(0, len(long) - 1, NUM_EXAMPLES).round().astype(int))):
        pair, names = pairs[long[i]], {}
        for kind in ("original", "decoded"):
            names[kind] = f"{folder.name}/{n}_{kind}.png"
            Image.fromarray(frame_strip(getattr(pair, kind))).save(out.parent / names[kind])
        examples.append({"caption": captions[long[i]], "psnr_db": pair.psnr_db, **names})
    return {"reconstruction": means(rows) | {"examples": examples}}


def draw_sheets(pairs: Sequence[Reconstruction], beside: Sequence[Sequence[Reconstruction]], out: Path) -> list[str]:
    """The sheet of each clip, by its path beside `out`: its frames, then every autoencoder's with the error."""
    folder = frames_folder(out) / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{folder.parent.name}/clips/{i:04d}.png" for i in range(len(pairs))]
    for name, pair, *others in zip(names, pairs, *beside, strict=True):
        sheet = comparison_sheet(pair.original, pair.decoded, *(other.decoded for other in others))
        Image.fromarray(sheet).save(out.parent / name)
    return names


def frames_folder(out: Path) -> Path:
    """Where the pictures of the evaluation in the file `out` are."""
    return out.with_name(f"{out.stem}_frames")
