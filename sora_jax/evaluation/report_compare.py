"""One HTML page of several runs: the same draws by compute, curves over steps and FLOPs, differing configs, scores."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.errors import UserError
from sora_jax.evaluation.figures import look
from sora_jax.evaluation.follow import with_intervals
from sora_jax.evaluation.report import command_of, data_of, render
from sora_jax.evaluation.report_config import differing, read_json, read_run, short_names, task_of
from sora_jax.evaluation.report_curves import (
    MEASURES,
    RATE,
    Curve,
    Rows,
    Series,
    draw,
    goodput,
    lasting,
    read_scores,
    score_curves,
    series,
    training_seconds,
    work_curves,
)
from sora_jax.evaluation.report_data import read_funnel
from sora_jax.evaluation.report_facts import Fact, hardware, short
from sora_jax.evaluation.report_samples import Matrix, compared, sampled_step
from sora_jax.training.compute import Spent, read_spent
from sora_jax.training.metrics import read_metrics

TEMPLATE = "report_compare.html"


@dataclass(frozen=True)
class CompareInputs:
    """Several runs; `samples` and `scores` (of `evaluate`, each a file) are in the order of `runs`, or empty."""

    runs: tuple[Path, ...]
    samples: tuple[Path, ...] = ()
    scores: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()
    title: str = "Runs compared"


class Run(NamedTuple):
    """What is read of one run."""

    folder: Path
    name: str
    config: dict[str, Any]
    made: dict[str, Any]
    rows: Rows
    spent: Spent
    goodput: float | None

    @property
    def step(self) -> int:
        """The last step with a row."""
        return max((row["step"] for row in self.rows), default=0)


class Line(NamedTuple):
    """A row of the table of runs: a number's name, its text for each run, and which runs have the best."""

    name: str
    values: list[str]
    best: list[bool]


def render_comparison(inputs: CompareInputs) -> str:
    """The page as HTML. Raises `UserError` where an input is missing or damaged, runs are of different tasks, or
    samples are not the same draws."""
    _check(inputs)
    described = [read_run(folder) for folder in inputs.runs]
    tasks = [task_of(config) for config, _ in described]
    if len(set(tasks)) > 1:
        named = ", ".join(f"{folder} is of the task {task}" for folder, task in zip(inputs.runs, tasks, strict=True))
        raise UserError(f"only runs of one task can be compared: {named}")
    fields = differing([config for config, _ in described])
    runs = [_read(*each) for each in zip(inputs.runs, short_names(inputs.runs, fields), described, strict=True)]
    given = {run.name: path for run, path in zip(runs, inputs.samples, strict=False)}
    files = {run.name: path for run, path in zip(runs, inputs.scores, strict=False)}
    runs.sort(key=lambda run: run.spent.flops_at(run.step) or 0.0)
    key = [(run.name, *look(i)) for i, run in enumerate(runs)]
    scores = _by_score(runs)
    picture, note = _picture(runs, [given[run.name] for run in runs] if given else [])
    data = inputs.data or tuple(dict.fromkeys(path for run in runs if (path := data_of(run.folder))))
    return render(
        TEMPLATE,
        title=inputs.title,
        subtitle=f"{len(runs)} runs of the task {tasks[0]}, trained with sora_jax.",
        names=[run.name for run in runs],
        key=key,
        picture=picture,
        picture_note=note,
        lines=_table(runs, _scores(runs, [files[run.name] for run in runs] if files else [])),
        curves=_loss_curves(runs),
        work=work_curves({run.name: run.rows for run in runs}),
        score_curves=score_curves(scores),
        score_key=[each for each in key if any(by_run.get(each[0]) for by_run in scores.values())],
        differing=differing([run.config for run in runs]),
        funnel=read_funnel(data),
        facts=_facts(runs),
        commands="",
        configs=[(f"command and config of {run.name}", f"{command_of(run.made)}\n{_indented(run)}") for run in runs],
    )


def _check(inputs: CompareInputs) -> None:
    for option, given in (("--samples", inputs.samples), ("--scores", inputs.scores)):
        if given and len(given) != len(inputs.runs):
            raise UserError(
                f"--run names {len(inputs.runs)} runs and {option} {len(given)}: give one for each, in the same order"
            )
    if len({folder.resolve() for folder in inputs.runs}) < len(inputs.runs):
        raise UserError(f"--run names a run twice: {', '.join(map(str, inputs.runs))}; name each once")


def _read(folder: Path, name: str, described: tuple[dict[str, Any], dict[str, Any]]) -> Run:
    account, _ = goodput(folder)
    rows = read_metrics(folder)
    return Run(folder, name, *described, rows, read_spent(folder), account.goodput if account else None)


def _picture(runs: Sequence[Run], samples: Sequence[Path]) -> tuple[Matrix | None, str]:
    """The same draws of all runs, the one of the least compute first: after the checkpoint that drew them."""
    if not samples:
        return None, ""
    steps = [sampled_step(folder) or run.step for run, folder in zip(runs, samples, strict=True)]
    flops = [run.spent.flops_at(step) for run, step in zip(runs, steps, strict=True)]
    known = [amount for amount in flops if amount is not None]
    heads = []
    for run, step, amount in zip(runs, steps, flops, strict=True):
        if amount is None:
            heads.append((run.name, f"step {step:,}"))
        else:
            heads.append((times(amount, min(known)), f"{run.name}; {amount:.2g} FLOPs, step {step:,}"))
    order = sorted(range(len(runs)), key=lambda i: flops[i] or 0.0)
    return compared(samples, heads, order)


def times(amount: float, least: float) -> str:
    """A multiple as people say it: 1x, 4.1x, 16x."""
    ratio = amount / least
    return f"{ratio:.0f}×" if ratio >= 10 or abs(ratio - round(ratio)) < 0.05 else f"{ratio:.1f}×"


def _loss_curves(runs: Sequence[Run]) -> list[Curve]:
    """The held-out losses by step and by compute, and the training loss."""
    curves = []
    for key, (title, ylabel) in MEASURES.items():
        held_out = {run.name: series(run.rows, "eval", key) for run in runs}
        curves += draw(f"{title}, held out, by step", ylabel, held_out, legend=False)
        by_flops = {run.name: _over_flops(run, held_out[run.name]) for run in runs}
        note = "6 × parameters × live tokens."
        axes = {"xlabel": "training FLOPs", "log_x": True, "legend": False}
        curves += draw(f"{title}, held out, by compute", ylabel, by_flops, note, **axes)
    training = {run.name: series(run.rows, "train", "loss") for run in runs}
    return curves + draw("Loss, training", "loss", training, smooth=True, legend=False)


def _over_flops(run: Run, curve: Series) -> Series:
    points = [(run.spent.flops_at(step), value) for step, value in zip(*curve, strict=True) if step]
    known = [(flops, value) for flops, value in points if flops is not None]
    return [flops for flops, _ in known], [value for _, value in known]


def _table(runs: Sequence[Run], scores: Sequence[dict[str, str]]) -> list[Line]:
    """Size, compute, speed and what came of it."""
    flops = [run.spent.flops_at(run.step) for run in runs]
    least = min((amount for amount in flops if amount), default=1.0)
    lines = [
        _line("steps", [run.step for run in runs], "{:,}"),
        _texts("parameters", [short(run.spent.parameters) if run.spent.parameters else "" for run in runs]),
        _texts("tokens", [short(run.spent.tokens[-1]) if run.spent.tokens else "" for run in runs]),
        _texts("training FLOPs", [f"{a:.2e}" if a else "" for a in flops]),
        _texts("as a multiple", [times(a, least) if a else "" for a in flops]),
    ]
    for key, (title, _) in MEASURES.items():
        for kind, said in (("eval", "held out"), ("train", "training")):
            last = [(series(run.rows, kind, key)[1] or [None])[-1] for run in runs]
            best = None if kind == "train" else (max if key == "psnr" else min)
            lines.append(_line(f"{title}, {said}, last", last, "{:.4f}", best))
    rates = sorted({key for run in runs for row in run.rows for key in row if key.endswith(RATE)})
    lines += [
        _line(f"{key.removesuffix(RATE)}/s, median", [_median(run, key) for run in runs], "{:,.0f}") for key in rates
    ]
    lines.append(_line("MFU, median", [_median(run, "mfu") for run in runs], "{:.1%}"))
    lines.append(_line("goodput", [run.goodput for run in runs], "{:.1%}"))
    lines.append(_texts("time of the steps", [lasting(training_seconds(run.rows)) for run in runs]))
    names = sorted({name for one in scores for name in one})
    lines += [_texts(name.replace("_", " "), [one.get(name, "") for one in scores]) for name in names]
    return [line for line in lines if any(line.values)]


def _median(run: Run, key: str) -> float | None:
    values = series(run.rows, "train", key)[1]
    return statistics.median(values) if values else None


def _line(name: str, values: Sequence[float | None], form: str, best: Any = None) -> Line:
    known = [value for value in values if value is not None]
    top = best(known) if best and len(known) > 1 else None
    return Line(
        name, ["" if v is None else form.format(v) for v in values], [top is not None and v == top for v in values]
    )


def _texts(name: str, values: list[str]) -> Line:
    return Line(name, values, [False] * len(values))


def _scores(runs: Sequence[Run], files: Sequence[Path]) -> list[dict[str, str]]:
    """Of each run the last score of each name with its interval; those of a file that was named go first."""
    found = []
    for i, run in enumerate(runs):
        last = {name: list(by_step.values())[-1] for name, by_step in read_scores(run.folder, run.rows).items()}
        given = with_intervals(read_json(files[i])) if files else {}
        texts = {}
        for name, (value, low, high) in {**last, **given}.items():
            has_interval = low is not None and high is not None and low == low  # NaN: none is known
            texts[name] = f"{value:.4g}" + (f" ({low:.4g} to {high:.4g})" if has_interval else "")
        found.append(texts)
    return found


def _by_score(runs: Sequence[Run]) -> dict[str, dict[str, dict[int, tuple[float, float, float]]]]:
    found: dict[str, dict[str, dict[int, tuple[float, float, float]]]] = {}
    for run in runs:
        for score, by_step in read_scores(run.folder, run.rows).items():
            lines = found.setdefault(score, {one.name: {} for one in runs})  # each run keeps its colour
            lines[run.name] = by_step
    return found


def _indented(run: Run) -> str:
    return json.dumps(run.config, indent=1)


def _facts(runs: Sequence[Run]) -> list[Fact]:
    """Hardware, said once where it is the same."""
    told = [(run.name, fact) for run in runs for _, fact in hardware("", run.made)]
    if len({fact for _, fact in told}) == 1 and len(told) == len(runs):
        return [("all trained on", told[0][1])]
    return [(f"{name} trained on", fact) for name, fact in told]
