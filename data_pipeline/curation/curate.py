"""The driver of a curation: sources through the stages, in this order.

    examine (parallel)   probe, shots, borders, measures                  → staged, one result a source
    filters              limits on the measures                           pure, here
    models (parallel)    scores and embeddings, if there are any          → staged, one result a clip
    duplicates, balance  over all clips that are left                     pure, here
    captioner (parallel) a caption of each clip that stays, if there is   → staged, one result a clip
    render (parallel)    each clip's bytes at each size                   → staged, one result a clip and size
    output               shards, in the order of the sources              here

What is parallel is a pure function of one source, staged under a name that says what it depends on; what is not is a
pure function of those results. So the shards are the same bytes whatever the engine, the number of workers, and
whoever was killed on the way.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import msgpack

from data_pipeline.build import alone_in
from data_pipeline.curation.balance import balance
from data_pipeline.curation.candidate import Candidate, Examined, Reason, Rejected
from data_pipeline.curation.config import CurationConfig
from data_pipeline.curation.duplicates import drop_duplicates
from data_pipeline.curation.examine import EXAMINE_VERSION
from data_pipeline.curation.filters import apply_limits, apply_scores
from data_pipeline.curation.funnel import funnel, sections
from data_pipeline.curation.output import captions_of, write_outputs
from data_pipeline.curation.sources import Source, list_sources
from data_pipeline.curation.tasks import (
    Models,
    Work,
    accelerators,
    captioners,
    examine_source,
    examined_name,
    load_examined,
    load_function,
    models_name,
    render,
    run_models,
    scorers,
)
from data_pipeline.engines import Died, Engine
from data_pipeline.errors import UserError, from_os_error
from data_pipeline.page import render_page
from data_pipeline.storage import Storage
from data_pipeline.tokenizer import Tokenizer

REPORT = "funnel.json"

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


def curate(
    inputs: str,
    out: str,
    cfg: CurationConfig,
    engine: Engine,
    captions: Path | None = None,
    staging: str = "",
    on_progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Curates and returns the counts of `OUT/funnel.json`. Calls `on_progress(stage, tasks done, tasks)`.

    `staging` is a folder that every worker sees, kept for the next run; by default `OUT/.staging`, deleted at the end.
    Raises `UserError` for bad options or metadata, where nothing is left, or if OUT holds another curation.
    """
    target = Storage(out)
    store = Storage(staging or f"{target.url}/.staging")
    sources, unmatched = list_sources(inputs, captions, exclude=target.local if target.is_local else None)
    tokenizer = Tokenizer.load(cfg.output.tokenizer) if cfg.output.tokenizer else None
    key = _key(sources, cfg, tokenizer)
    if target.exists(REPORT):
        return _finished(target, key)
    for model in (scorers(cfg) | captioners(cfg)).values():
        load_function(model.function)  # a name that is wrong is no news for the end of the run
    try:
        with alone_in(target.local) if target.is_local else nullcontext():
            return _curate(sources, unmatched, cfg, engine, store, target, key, tokenizer, bool(staging), on_progress)
    except OSError as error:
        raise from_os_error(error, f"curating into {out}") from error


def _curate(
    sources: list[Source],
    unmatched: int,
    cfg: CurationConfig,
    engine: Engine,
    store: Storage,
    target: Storage,
    key: str,
    tokenizer: Tokenizer | None,
    keep: bool,
    on_progress: Progress,
) -> dict[str, Any]:
    by_id = {source.source_id: source for source in sources}
    report = partial(_reported, on_progress)
    examined = _examine(sources, cfg, engine, store, report)
    clips = [apply_limits(clip, cfg.filters) for source in examined for clip in source.candidates]
    clips = _apply_models(clips, by_id, scorers(cfg), "models", engine, store, report)
    clips = _on_left(clips, lambda left: [apply_scores(clip, cfg.scores) for clip in left])
    clips = _on_left(clips, lambda left: drop_duplicates(left, cfg.duplicates, partial(on_progress, "duplicates")))
    if cfg.output.require_caption and not captioners(cfg):
        # Behind the duplicates, whose captions go to the clip that stays; quotas are for what may stay.
        clips = _on_left(clips, partial(_captioned, by_id, cfg, "captions"))
    clips = _on_left(clips, lambda left: balance(left, cfg.balance))
    clips = _apply_models(clips, by_id, captioners(cfg), "captioner", engine, store, report)
    if cfg.output.require_caption and captioners(cfg):
        clips = _on_left(clips, partial(_captioned, by_id, cfg, "captioner"))
    clips = _render(clips, by_id, cfg, engine, store, report)
    counts = funnel(examined, clips)
    _write_reports(counts, examined, clips, by_id, cfg, store, target)
    kept = [clip for clip in clips if not clip.rejected]
    if not kept:
        raise UserError(
            f"no clip of {len(sources)} sources is left: {target.url}/funnel.html says which stage dropped them"
        )
    written = write_outputs(kept, by_id, cfg, key, tokenizer, store, target)
    found = {"sources": len(sources), "captions_unmatched": unmatched}
    result = {"key": key, **found, "datasets": written, "funnel": counts}
    target.write(REPORT, (json.dumps(result, indent=1) + "\n").encode())
    if not keep:
        store.clear()
    return result


def _key(sources: Sequence[Source], cfg: CurationConfig, tokenizer: Tokenizer | None) -> str:
    """What decides the bytes of the data sets."""
    parts = [[s.source_id, s.stamp, [dataclasses.asdict(line) for line in s.lines]] for s in sources]
    fingerprint = None if tokenizer is None else tokenizer.fingerprint
    plain = json.dumps([EXAMINE_VERSION, dataclasses.asdict(cfg), fingerprint, parts])
    return hashlib.sha256(plain.encode()).hexdigest()


def _finished(target: Storage, key: str) -> dict[str, Any]:
    found = json.loads(target.read(REPORT))
    if found["key"] != key:
        raise UserError(f"{target.url} holds a curation of other sources, captions or options: choose another --out")
    return found


def _reported(on_progress: Progress, stage: str, total: int, results: Iterator[Any]) -> Iterator[Any]:
    for done, result in enumerate(results, 1):
        yield result
        on_progress(stage, done, total)


def _examine(
    sources: list[Source], cfg: CurationConfig, engine: Engine, store: Storage, report: Callable[..., Any]
) -> list[Examined]:
    """In the order of the sources, without their pictures. A crash, or a source that could not be fetched, is of this
    run only: nothing of it is staged."""
    todo = [number for number, source in enumerate(sources) if not store.exists(examined_name(cfg, source))]
    failed: dict[str, Rejected] = {}
    task = partial(examine_source, cfg, store.url)
    for place, result in report("examine", len(todo), engine.map(task, [sources[number] for number in todo])):
        source_id = sources[todo[place]].source_id
        if isinstance(result, Died):
            failed[source_id] = Rejected("probe", Reason.CRASHED, "its worker died each time")
        elif result:
            failed[source_id] = result
    examined = []
    for source in sources:
        if source.source_id in failed:
            examined.append(Examined(source.source_id, "", rejected=failed[source.source_id]))
        else:
            examined.append(_without_pictures(load_examined(store, examined_name(cfg, source))))
    return examined


def _without_pictures(examined: Examined) -> Examined:
    candidates = tuple(dataclasses.replace(candidate, picture=b"") for candidate in examined.candidates)
    return dataclasses.replace(examined, candidates=candidates)


def _on_left(clips: list[Candidate], stage: Callable[[list[Candidate]], list[Candidate]]) -> list[Candidate]:
    """`stage` on the clips that no earlier one rejected; the order stays."""
    left = iter(stage([clip for clip in clips if not clip.rejected]))
    return [clip if clip.rejected else next(left) for clip in clips]


def _works(clips: Sequence[Candidate], sources: dict[str, Source]) -> list[Work]:
    """One task a source that has clips left."""
    left = groupby((clip for clip in clips if not clip.rejected), key=lambda clip: clip.source_id)
    return [(sources[name], tuple(members)) for name, members in left]


def _failed(
    works: Sequence[Work], stage: str, results: Iterator[tuple[int, Died | list[tuple[int, str]]]]
) -> dict[tuple[str, int], Rejected]:
    """By source and start: the clips of tasks that died, and those that a task says could not be read."""
    failed: dict[tuple[str, int], Rejected] = {}
    for place, result in results:
        source, members = works[place]
        if isinstance(result, Died):
            why = Rejected(stage, Reason.CRASHED, "its worker died each time")
            failed |= {(source.source_id, clip.start): why for clip in members}
        else:
            failed |= {(source.source_id, start): Rejected(stage, Reason.UNREADABLE, text) for start, text in result}
    return failed


def _apply_models(
    clips: list[Candidate],
    sources: dict[str, Source],
    models: Models,
    stage: str,
    engine: Engine,
    store: Storage,
    report: Callable[..., Any],
) -> list[Candidate]:
    if not models:
        return clips
    works = _works(clips, sources)
    results = engine.map(partial(run_models, models, store.url), works, accelerators(models))
    failed = _failed(works, stage, report(stage, len(works), results))

    def apply(clip: Candidate) -> Candidate:
        name = models_name(models, clip, sources[clip.source_id].stamp)
        if not store.exists(name):
            return dataclasses.replace(clip, rejected=failed[clip.source_id, clip.start])
        found = msgpack.unpackb(store.read(name))
        if why := found.pop("failed"):
            return dataclasses.replace(clip, rejected=Rejected(stage, Reason.MODEL_FAILED, why))
        return dataclasses.replace(clip, **{**found, "measures": {**clip.measures, **found["measures"]}})

    return _on_left(clips, lambda left: [apply(clip) for clip in left])


def _captioned(sources: dict[str, Source], cfg: CurationConfig, stage: str, clips: list[Candidate]) -> list[Candidate]:
    why = Rejected(stage, Reason.NO_CAPTION, "neither the metadata nor a captioner has one")
    return [clip if captions_of(clip, sources, cfg) else dataclasses.replace(clip, rejected=why) for clip in clips]


def _render(
    clips: list[Candidate],
    sources: dict[str, Source],
    cfg: CurationConfig,
    engine: Engine,
    store: Storage,
    report: Callable[..., Any],
) -> list[Candidate]:
    works = _works(clips, sources)
    results = engine.map(partial(render, cfg.output.short_sides, store.url), works)
    failed = _failed(works, "render", report("render", len(works), results))
    return [
        dataclasses.replace(clip, rejected=failed[clip.source_id, clip.start])
        if (clip.source_id, clip.start) in failed
        else clip
        for clip in clips
    ]


def _write_reports(
    counts: dict[str, Any],
    examined: list[Examined],
    clips: list[Candidate],
    sources: dict[str, Source],
    cfg: CurationConfig,
    store: Storage,
    target: Storage,
) -> None:
    """`clips.jsonl` and `rejected.jsonl`, a line each, and `funnel.html`."""
    lines = "".join(f"{json.dumps(_line(clip), ensure_ascii=False)}\n" for clip in clips)
    target.write("clips.jsonl", lines.encode())
    gone: list[tuple[str, Rejected]] = [(s.source_id, s.rejected) for s in examined if s.rejected]
    gone += [(clip.clip_id, clip.rejected) for clip in clips if clip.rejected]
    rejected = [{"path": name, "stage": r.stage, "reason": r.reason, "detail": r.detail} for name, r in gone]
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in rejected)
    target.write("rejected.jsonl", text.encode())

    def picture(clip: Candidate) -> bytes:
        staged = load_examined(store, examined_name(cfg, sources[clip.source_id]))
        return next(candidate.picture for candidate in staged.candidates if candidate.start == clip.start)

    kept = sum(not clip.rejected for clip in clips)
    subtitle = f"{len(sources)} sources, {len(clips)} clips, {kept} kept"
    page = render_page("What the curation kept and dropped", subtitle, sections(counts, examined, clips, picture))
    target.write("funnel.html", page.encode())


def _line(clip: Candidate) -> dict[str, Any]:
    outcome = f"{clip.rejected.stage}: {clip.rejected.reason}" if clip.rejected else "kept"
    place = {"start_s": round(clip.start / clip.fps, 3), "end_s": round(clip.end / clip.fps, 3), "crop": clip.crop}
    return {"clip_id": clip.clip_id, "source": clip.source_id, "outcome": outcome, **place, "measures": clip.measures}
