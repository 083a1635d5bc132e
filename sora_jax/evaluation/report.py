"""One HTML page of a run that needs nothing beside itself: samples beside their prompts, scores, curves, commands.

Everything shown is read from what the verbs wrote: `samples.jsonl`, `evaluation.json`, of each run `metrics.jsonl`,
`ledger.jsonl`, `previews`, `config.json` and `run.json`, and the manifests of its data. A part whose files are not
there is left out of the page. Several runs are compared (`report_compare.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from data_pipeline.errors import UserError
from data_pipeline.shards import Manifest
from data_pipeline.video_io import decode
from sora_jax.evaluation.inputs import read_samples
from sora_jax.evaluation.report_config import differences, read_json, read_run, task_of
from sora_jax.evaluation.report_curves import goodput, loss_curves, read_scores, score_curves, spells, work_curves
from sora_jax.evaluation.report_data import read_funnel
from sora_jax.evaluation.report_facts import distances, headline, made_facts, reconstruction, score_rows
from sora_jax.evaluation.report_samples import by_checkpoint, judged_samples
from sora_jax.training.compute import read_spent
from sora_jax.training.metrics import read_metrics

TEMPLATE = "report.html"
MOST_LETTERS = 120
"""In a line of a command."""
TASKS = {"diffusion": "diffusion transformer"}
"""`config.train.task` -> what the page calls such a run; others by their task."""


@dataclass(frozen=True)
class ReportInputs:
    """The folders and files of one page. Only `run` must be there; `data` is what it was trained on, found by itself
    where the run's config says so."""

    run: Path
    samples: Path | None = None
    autoencoder: Path | None = None
    evaluation: Path | None = None
    commands: Path | None = None
    scores: Path | None = None
    data: tuple[Path, ...] = ()
    title: str = "Text to video, trained from scratch"


def render_report(inputs: ReportInputs) -> str:
    """The page as HTML. Raises `UserError` where a named input is missing or damaged."""
    evaluation = read_json(inputs.evaluation) if inputs.evaluation else {}
    samples = judged_samples(inputs.samples, evaluation) if inputs.samples else []
    config, made = read_run(inputs.run)
    name = TASKS.get(task_of(config), task_of(config))
    runs = {name: inputs.run} | ({"autoencoder": inputs.autoencoder} if inputs.autoencoder else {})
    metrics = {name: read_metrics(folder) for name, folder in runs.items()}
    account, growth = goodput(inputs.run)
    scores = read_scores(inputs.run, metrics[name])
    return render(
        TEMPLATE,
        title=inputs.title,
        subtitle=_subtitle(inputs, len(samples)),
        stats=headline(evaluation, metrics, read_spent(inputs.run), account.goodput if account else None),
        samples=samples,
        num_obeyed=sum(sample["obeyed"] for sample in samples),
        judged="scores" in evaluation,
        checkpoints=[matrix for folder in runs.values() for matrix in by_checkpoint(folder, read_run(folder)[0])],
        scores=score_rows(evaluation.get("scores", {})),
        has_autoencoded=any("autoencoded" in score for score in evaluation.get("scores", {}).values()),
        curves=loss_curves(metrics),
        work=[*work_curves({name: metrics[name]}), *growth],
        time=spells(account),
        score_curves=score_curves({score: {name: by_step} for score, by_step in scores.items()}),
        reconstruction=reconstruction(inputs.evaluation, evaluation),
        funnel=read_funnel(inputs.data or [path for folder in runs.values() if (path := data_of(folder))]),
        facts=made_facts(runs, metrics) + (distances(read_json(inputs.scores)) if inputs.scores else []),
        differences=differences(config),
        commands=_read_text(inputs.commands).strip() if inputs.commands else command_of(made),
        configs=[(f"config of the {name}", json.dumps(read_run(folder)[0], indent=1)) for name, folder in runs.items()],
    )


def render(template: str, **values: Any) -> str:
    """A template of this package with these values; every text is escaped."""
    loader = jinja2.PackageLoader("sora_jax.evaluation")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def data_of(run: Path) -> Path | None:
    """The data that a run was trained on: where its config says, from here or from where it was started, or beside the
    run; None where no such folder holds the data of the run's fingerprint."""
    config, made = read_run(run)
    path = Path(config.get("data", {}).get("path", ""))
    places = (path, Path(made.get("environment", {}).get("directory", "")) / path, run.resolve().parent / path.name)
    for place in places:
        if (place / "manifest.json").is_file():
            try:
                if Manifest.load(place).fingerprint == made["fingerprints"].get("data"):
                    return place
            except UserError:
                continue  # it is not the run's: that was of today's schema
    return None


def command_of(made: Mapping[str, Any]) -> str:
    """The command that a `run.json` says the run was started with, and the code that it was."""
    environment = made.get("environment")
    if not environment:
        return ""
    command = environment["command"]
    folded = command if len(command) <= MOST_LETTERS else command.replace(" --config.", " \\\n    --config.")
    return f"# code {made['code']}\n{folded}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _subtitle(inputs: ReportInputs, num_samples: int) -> str:
    if inputs.samples is None:
        return f"The run {inputs.run}, trained with sora_jax."
    first = read_samples(inputs.samples)[0]
    frames, fps = decode(inputs.samples / first["file"])
    num, height, width, _ = frames.shape
    return (
        f"{num_samples} samples of {width}×{height} pixels, {num} frames at {fps:g} a second, drawn from the "
        f"moving average of {inputs.run} with sora_jax."
    )
