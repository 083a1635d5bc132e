"""The numbers and facts of a report's page: its head, scores with intervals, reconstructions, hardware."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_jax.evaluation.figures import data_uri
from sora_jax.evaluation.report_config import read_run
from sora_jax.evaluation.report_curves import RATE, lasting, training_seconds
from sora_jax.training.compute import Spent

Rows = Sequence[dict[str, Any]]
Fact = tuple[str, str]

ROW_NAMES = {
    "colour": "colour",
    "shape": "shape",
    "direction": "direction of motion",
    "all": "every claim of the prompt",
}


def headline(
    evaluation: Mapping[str, Any], metrics: Mapping[str, Rows], spent: Spent | None, productive: float | None
) -> list[dict[str, str]]:
    """The few numbers at the top."""
    stats = []
    for name, score in evaluation.get("scores", {}).items():
        share = shown_share(score["generated"])
        if share["known"]:
            label = "all claims right" if name == "all" else f"{name} right"
            stats.append({"value": share["percent"], "label": label, "note": f"95% interval {share['interval']}"})
    if "reconstruction" in evaluation:
        found = evaluation["reconstruction"]
        note = f"SSIM {found['ssim']:.3f}, {found['num_clips']} held-out clips"
        stats.append({"value": f"{found['psnr_db']:.1f} dB", "label": "autoencoder PSNR", "note": note})
    seconds = {name: training_seconds(rows) for name, rows in metrics.items()}
    if sum(seconds.values()):
        parts = [f"{name} {lasting(value)}" for name, value in seconds.items()] if len(seconds) > 1 else []
        parts += [] if productive is None else [f"goodput {100 * productive:.0f}%"]
        stats.append({"value": lasting(sum(seconds.values())), "label": "training", "note": ", ".join(parts)})
    if spent is not None and spent.parameters:
        tokens = f"{short(spent.tokens[-1])} tokens seen" if spent.tokens else ""
        stats.append({"value": short(spent.parameters), "label": "parameters", "note": tokens})
    return stats


def short(value: float) -> str:
    """A large number in three digits and a letter."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def shown_share(share: dict[str, Any] | None) -> dict[str, Any]:
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


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table of probes."""
    rows = []
    for name, score in scores.items():
        if score["generated"]["rate"] is None:
            continue
        groups = {group: shown_share(score.get(group)) for group in ("generated", "real", "autoencoded")}
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


def reconstruction(path: Path | None, evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Pairs of held-out clips and what the autoencoder makes of them, as `evaluate` wrote them."""
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


def made_facts(runs: Mapping[str, Path], metrics: Mapping[str, Rows]) -> list[Fact]:
    """Where each run was trained, how fast, and of what; and the machine that writes the page."""
    facts = []
    for name, folder in runs.items():
        made = read_run(folder)[1]
        facts += hardware(name, made)
        last = max((row["step"] for row in metrics[name]), default=0)
        rates = [row for row in metrics[name] if row["kind"] == "train" and row.get("step_seconds")]
        if rates:
            per_second = next((f", {rates[-1][k]:,.0f} {k.split('_')[0]}/s" for k in rates[-1] if k.endswith(RATE)), "")
            mfu = f", MFU {100 * rates[-1]['mfu']:.0f}%" if rates[-1].get("mfu") else ""
            facts.append((f"{name}, steps", f"{last:,} of {rates[-1]['step_seconds']:.3f} s{per_second}{mfu}"))
        facts += [(f"{name}, {kind} fingerprint", value[:16]) for kind, value in made["fingerprints"].items()]
    return [
        *facts,
        ("machine of this page", f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"),
    ]


def hardware(name: str, made: Mapping[str, Any]) -> list[Fact]:
    """The devices, system and versions in a `run.json`; older runs have none."""
    environment = made.get("environment")
    if not environment:
        return []
    hosts = (
        f"{environment['processes']} processes on {len(environment['hosts'])} hosts" if "hosts" in environment else ""
    )
    hosts = "one process" if environment.get("processes") == 1 else hosts
    versions = ", ".join(f"{n} {v}" for n, v in environment["packages"].items() if n in ("jax", "jaxlib", "flax"))
    parts = [environment["devices"], hosts, environment.get("system", ""), f"Python {environment.get('python', '')}"]
    text = ", ".join(part for part in (*parts, versions, f"code {made['code']}") if part)
    return [(f"{name} trained on", text)]


def distances(result: dict[str, Any]) -> list[tuple[str, str]]:
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


def _processor() -> str:
    """The processor's name where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
