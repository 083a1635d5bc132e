"""One HTML page of a run that needs nothing beside itself: samples beside their prompts, scores, curves, commands.

Everything shown is read from what the verbs wrote: `samples.jsonl`, `evaluation.json`, and of each run
`metrics.jsonl`, `config.json` and `run.json`. A part whose files are not there is left out of the page.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from data_pipeline.errors import UserError
from data_pipeline.video_io import decode
from sora_jax.evaluation.figures import curves_svg, data_uri, frame_strip, png_uri
from sora_jax.evaluation.inputs import read_sample, read_samples
from sora_jax.training.metrics import read_metrics

TEMPLATE = "report.html"
VIDEO_ENDINGS = (".mp4", ".webm")
ROW_NAMES = {
    "colour": "colour",
    "shape": "shape",
    "direction": "direction of motion",
    "all": "every claim of the prompt",
}
MEASURES = {"loss": ("Loss", "loss"), "l1": ("L1 error", "L1 of pixels in [-1, 1]"), "psnr": ("PSNR", "dB")}
BUCKET = "loss_t"  # `sora_jax.objectives.diffusion` names its held-out losses so, the middle of the bucket behind it


@dataclass(frozen=True)
class ReportInputs:
    """The folders and files of one page. Only `run` and `samples` must be there."""

    run: Path
    samples: Path
    autoencoder: Path | None = None
    evaluation: Path | None = None
    commands: Path | None = None
    scores: Path | None = None
    title: str = "Text to video, trained from scratch"


def render_report(inputs: ReportInputs) -> str:
    """The page as HTML. Raises `UserError` where a named input is missing or damaged."""
    evaluation = _read_json(inputs.evaluation) if inputs.evaluation else {}
    samples = _samples(inputs.samples, evaluation)
    runs = {"diffusion transformer": inputs.run} | ({"autoencoder": inputs.autoencoder} if inputs.autoencoder else {})
    metrics = {name: read_metrics(folder) for name, folder in runs.items()}
    loader = jinja2.PackageLoader("sora_jax.evaluation")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(TEMPLATE).render(
        title=inputs.title,
        subtitle=_subtitle(inputs, samples),
        stats=_stats(evaluation, metrics),
        samples=samples,
        num_obeyed=sum(sample["obeyed"] for sample in samples),
        judged="scores" in evaluation,
        scores=_scores(evaluation.get("scores", {})),
        has_autoencoded=any("autoencoded" in score for score in evaluation.get("scores", {}).values()),
        curves=_curves(metrics),
        reconstruction=_reconstruction(inputs.evaluation, evaluation),
        facts=_facts(inputs, runs, metrics) + (_distances(_read_json(inputs.scores)) if inputs.scores else []),
        commands=_read_text(inputs.commands).strip() if inputs.commands else "",
        configs=[
            (f"config of the {name}", json.dumps(_read_json(f / "config.json"), indent=1)) for name, f in runs.items()
        ],
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: run the verb that writes it first") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): run the verb that writes it again") from error


def _samples(directory: Path, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Every sample with its media inlined and, where it was judged, its verdicts."""
    judged = {entry["file"]: entry for entry in evaluation.get("samples", [])}
    shown = []
    for entry in read_samples(directory):
        verdict = judged.get(entry["file"], {"obeyed": False, "verdicts": []})
        path = directory / entry["file"]
        frames = read_sample(directory, entry)
        shown.append(
            {
                "prompt": entry["prompt"],
                "strip": png_uri(frame_strip(frames)),
                "aspect": f"{frames.shape[2]}/{frames.shape[1]}",
                "media": data_uri(path),
                "is_video": path.suffix.lower() in VIDEO_ENDINGS,
                "obeyed": verdict["obeyed"],
                "verdicts": verdict["verdicts"],
            }
        )
    return shown


def _subtitle(inputs: ReportInputs, samples: list[dict[str, Any]]) -> str:
    first = read_samples(inputs.samples)[0]
    frames, fps = decode(inputs.samples / first["file"])
    num, height, width, _ = frames.shape
    return (
        f"{len(samples)} samples of {width}×{height} pixels, {num} frames at {fps:g} a second, drawn from the "
        f"moving average of {inputs.run} with sora_jax."
    )


def _stats(evaluation: dict[str, Any], metrics: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """The few numbers at the top."""
    stats = []
    for name, score in evaluation.get("scores", {}).items():
        share = _share(score["generated"])
        if share["known"]:
            label = "all claims right" if name == "all" else f"{name} right"
            stats.append({"value": share["percent"], "label": label, "note": f"95% interval {share['interval']}"})
    if "reconstruction" in evaluation:
        found = evaluation["reconstruction"]
        note = f"SSIM {found['ssim']:.3f}, {found['num_clips']} held-out clips"
        stats.append({"value": f"{found['psnr_db']:.1f} dB", "label": "autoencoder PSNR", "note": note})
    seconds = {name: _training_seconds(rows) for name, rows in metrics.items()}
    if sum(seconds.values()):
        note = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
        stats.append({"value": _duration(sum(seconds.values())), "label": "training", "note": note})
    return stats


def _share(share: dict[str, Any] | None) -> dict[str, Any]:
    """A share as the table prints and draws it; positions are percent of the scale."""
    if share is None or share["rate"] is None:
        return {"known": False, "percent": "–", "interval": "", "counts": "", "low": 0, "width": 0, "at": 0}
    low, high = 100 * share["low"], 100 * share["high"]
    return {
        "known": True,
        "percent": f"{100 * share['rate']:.0f}%" if share["rate"] in (0, 1) else f"{100 * share['rate']:.1f}%",
        "interval": f"{low:.0f}–{high:.0f}%",
        "counts": f"{share['correct']}/{share['total']}",
        "low": round(low, 2),
        "width": round(high - low, 2),
        "at": round(100 * share["rate"], 2),
    }


def _scores(scores: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, score in scores.items():
        if score["generated"]["rate"] is None:
            continue
        groups = {group: _share(score.get(group)) for group in ("generated", "real", "autoencoded")}
        chance = score["chance"]
        percent = "–" if chance is None else f"{100 * chance:.1f}%"
        rows.append(
            {
                "name": ROW_NAMES.get(name, name),
                "chance": percent,
                "chance_left": round(100 * (chance or 0), 2),
                **groups,
            }
        )
    return rows


def _curves(metrics: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """Losses of both runs, the autoencoder's PSNR, and the held-out loss at each noise level."""
    curves = []
    for name, rows in metrics.items():
        for key, (title, ylabel) in MEASURES.items():
            both = {"training": _series(rows, "train", key), "held out": _series(rows, "eval", key)}
            if both["held out"][0]:
                note = "Held out: averaged parameters, the same draw each time."
                _add(curves, f"{title} of the {name}", ylabel, both, note)
        names = sorted({key for row in rows if row["kind"] == "eval" for key in row if key.startswith(BUCKET)})
        buckets = {f"t = {key.removeprefix(BUCKET)}": _series(rows, "eval", key) for key in names}
        _add(curves, "Held-out loss by noise level", "loss at t", buckets, "t = 0 is clean, t = 1 is noise.")
    return curves


def _series(rows: Sequence[dict[str, Any]], kind: str, name: str) -> tuple[list[float], list[float]]:
    found = [(row["step"], row[name]) for row in rows if row["kind"] == kind and row.get(name) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _add(curves: list, title: str, ylabel: str, series: dict[str, tuple[list[float], list[float]]], note: str) -> None:
    series = {name: xy for name, xy in series.items() if len(xy[0]) > 1}
    if not series:
        return
    values = [y for _, ys in series.values() for y in ys]
    log = min(values) > 0 and max(values) > 8 * min(values)
    curves.append({"title": title, "svg": curves_svg(series, ylabel, log_y=log, smooth=True), "note": note})


def _reconstruction(path: Path | None, evaluation: dict[str, Any]) -> dict[str, Any] | None:
    found = evaluation.get("reconstruction")
    if path is None or found is None:
        return None
    examples = [
        {kind: data_uri(path.parent / example[kind]) for kind in ("original", "decoded")}
        | {"caption": example["caption"], "psnr": f"{example['psnr_db']:.1f}"}
        for example in found["examples"]
    ]
    note = (
        f"{found['num_clips']} held-out clips come back with {found['psnr_db']:.2f} dB PSNR "
        f"(deviation between clips {found['psnr_db_deviation']:.2f}) and SSIM {found['ssim']:.4f}."
    )
    return {"note": note, "examples": examples}


def _facts(
    inputs: ReportInputs, runs: dict[str, Path], metrics: dict[str, list[dict[str, Any]]]
) -> list[tuple[str, str]]:
    facts = [("machine of this page", f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")]
    for name, folder in runs.items():
        made = _read_json(folder / "run.json")
        if environment := made.get("environment"):  # older runs have none
            versions = f"jax {environment['packages']['jax']}, code {made['code']}"
            facts.append((f"{name} trained on", f"{environment['devices']}, {versions}"))
        last = max((row["step"] for row in metrics[name]), default=0)
        rates = [row for row in metrics[name] if row["kind"] == "train" and row.get("step_seconds")]
        if rates:
            per_second = next(
                (f", {rates[-1][k]:,.0f} {k.split('_')[0]}/s" for k in rates[-1] if k.endswith("_per_second")), ""
            )
            mfu = f", MFU {100 * rates[-1]['mfu']:.0f}%" if rates[-1].get("mfu") else ""
            facts.append((f"{name}, steps", f"{last:,} of {rates[-1]['step_seconds']:.3f} s{per_second}{mfu}"))
        facts += [(f"{name}, {kind} fingerprint", value[:16]) for kind, value in made["fingerprints"].items()]
    return facts


def _distances(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Distances and means, each with its 95% interval, of what `evaluate` wrote for one metric or several."""
    facts = []
    for metric in result["metric"].split(","):
        found: dict[str, Any] = result[metric] if isinstance(result.get(metric), dict) else result
        if isinstance(found.get(metric), int | float):
            interval = found.get("interval")
            spread = f" ({interval['low']:.4g} to {interval['high']:.4g})" if interval else ""
            of = f"{found['num_generated']:,} samples, {found['num_real']:,} real, protocol {found['protocol']}"
            facts.append((metric, f"{found[metric]:.4g}{spread}; {of}, hash {found['hash'][:12]}"))
        if metric == "dimensions":
            for name, score in found["scores"]["generated"].items():
                real = found["scores"].get("real", {}).get(name)
                beside = f"; real {real['mean']:.3f}" if real else ""
                facts.append(
                    (name.replace("_", " "), f"{score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f}){beside}")
                )
    return facts


def _training_seconds(rows: Sequence[dict[str, Any]]) -> float:
    """Seconds of the steps alone: compilation, evaluation and saving are not in a row's `step_seconds`."""
    seconds, before = 0.0, 0
    for row in rows:
        if row["kind"] == "train":
            seconds += (row.get("step_seconds") or 0.0) * (row["step"] - before)
            before = row["step"]
    return seconds


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{minutes} min"
        if minutes < 90
        else f"{minutes // 60} h {minutes % 60} min"
    )


def _processor() -> str:
    """The processor's name where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
