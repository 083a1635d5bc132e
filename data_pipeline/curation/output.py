"""From staged clips to data sets, one for each size: in the order of the sources, in one process, whatever ran."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack

from data_pipeline.curation.candidate import Candidate
from data_pipeline.curation.config import CurationConfig, OutputConfig
from data_pipeline.curation.sources import Source
from data_pipeline.curation.tasks import fits, rendered_name
from data_pipeline.curation.webdataset import MANIFEST, WebDatasetWriter
from data_pipeline.errors import UserError
from data_pipeline.records import Caption, ClipRecord
from data_pipeline.shards import ShardWriter
from data_pipeline.storage import Storage
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.walk import group_pattern, heldout_groups


def folder_name(short_side: int) -> str:
    return f"{short_side}p" if short_side else "native"


def write_outputs(
    clips: Sequence[Candidate],
    sources: dict[str, Source],
    cfg: CurationConfig,
    key: str,
    tokenizer: Tokenizer | None,
    staging: Storage,
    out: Storage,
) -> dict[str, dict[str, int]]:
    """Records by size and split. A size that an earlier run has finished with the same clips is left as it is; one
    with others is written anew, so that all sizes hold the same."""
    pattern = group_pattern(cfg.output.group_regex)
    groups = {name: sources[name].group(pattern) for name in {clip.source_id for clip in clips}}
    held = heldout_groups(set(groups.values()), cfg.output.heldout_fraction)
    captions = {clip.clip_id: captions_of(clip, sources, cfg) for clip in clips}
    if tokenizer is None:
        texts = (text for c in clips if groups[c.source_id] not in held for text, _, _ in captions[c.clip_id])
        tokenizer = Tokenizer.train(texts, cfg.output.vocab_size)
    keys = {"curation_key": key, "clips_key": hashlib.sha256(json.dumps(captions).encode()).hexdigest()}
    counts = {}
    for side in cfg.output.short_sides:
        name, fitting = folder_name(side), [clip for clip in clips if fits(clip, side)]
        finished = _finished(cfg.output, keys, Storage(f"{out.url}/{name}"))
        if finished is None and fitting:
            records = (_record(clip, sources, groups, held, cfg, staging, side, tokenizer) for clip in fitting)
            finished = _write(records, cfg.output, tokenizer, {**keys, "short_side": side}, out, name)
        if finished is not None:
            counts[name] = finished
    return counts


def _finished(cfg: OutputConfig, keys: dict[str, str], folder: Storage) -> dict[str, int] | None:
    """The counts of a finished size; None where there is none, or one of other clips, which is deleted: whoever died
    then may live now. Raises `UserError` for a data set of another curation."""
    if not folder.exists(_commit(cfg)):
        return None
    found = json.loads(folder.read(_commit(cfg)))
    there = found["metadata"]
    if there.get("curation_key") != keys["curation_key"]:
        raise UserError(f"{folder.url} holds a data set of other sources or options: choose another --out")
    if there.get("clips_key") == keys["clips_key"]:
        return found["counts"]
    folder.clear()
    return None


def _commit(cfg: OutputConfig) -> str:
    """The file that is written last."""
    return "manifest.json" if cfg.format == "array_record" else MANIFEST


def _write(
    records: Iterator[ClipRecord],
    cfg: OutputConfig,
    tokenizer: Tokenizer,
    metadata: dict[str, Any],
    out: Storage,
    name: str,
) -> dict[str, int]:
    if out.is_local:
        return _write_local(records, cfg, tokenizer, metadata, out.local / name)
    with TemporaryDirectory() as scratch:
        counts = _write_local(records, cfg, tokenizer, metadata, Path(scratch))
        for path in sorted(Path(scratch).iterdir(), key=lambda path: (path.name == _commit(cfg), path.name)):
            out.upload(path, f"{name}/{path.name}")
    return counts


def _write_local(
    records: Iterator[ClipRecord], cfg: OutputConfig, tokenizer: Tokenizer, metadata: dict[str, Any], folder: Path
) -> dict[str, int]:
    if cfg.format == "webdataset":
        tars = WebDatasetWriter(folder, cfg.records_per_shard, metadata)
        for record in records:
            tars.write(record)
        return tars.finish()
    shards = ShardWriter(folder, "clip", cfg.records_per_shard, tokenizer, metadata)
    for record in records:
        shards.write(record)
    return shards.finish().counts


def captions_of(clip: Candidate, sources: dict[str, Source], cfg: CurationConfig) -> list[tuple[str, str, str]]:
    """(text, source, language): what came with the source, then what came with its copies and says something else, then
    the captioner's, never in the place of those."""
    found = [(line.text, line.source, line.language) for line in sources[clip.source_id].lines if line.text]
    texts = {text for text, _, _ in found} | {""}
    for line in (line for name in clip.copies for line in sources[name].lines):
        if line.text not in texts:
            found.append((line.text, line.source, line.language))
            texts.add(line.text)
    return [*found, *([(clip.caption, cfg.captioner.function, "und")] if clip.caption else [])]


def _record(
    clip: Candidate,
    sources: dict[str, Source],
    groups: dict[str, str],
    held: set[str],
    cfg: CurationConfig,
    staging: Storage,
    side: int,
    tokenizer: Tokenizer,
) -> ClipRecord:
    source, group = sources[clip.source_id], groups[clip.source_id]
    encoded = msgpack.unpackb(staging.read(rendered_name(clip, source.stamp, side)))
    place = {} if clip.whole else {"source_start_s": round(clip.start / clip.fps, 6)}
    return ClipRecord(
        clip_id=clip.clip_id,
        source_id=clip.source_id,
        group_id=group,
        split="heldout" if group in held else "train",
        video=encoded["video"],
        media_type=encoded["media_type"],
        start_s=0.0,
        end_s=clip.num_frames / clip.fps,
        fps=clip.fps,
        num_frames=clip.num_frames,
        height=encoded["height"],
        width=encoded["width"],
        crop=tuple(encoded["crop"]),
        colour=encoded["colour"],
        license=next((line.license for line in source.lines if line.license), cfg.output.license),
        checksum=hashlib.sha256(encoded["video"]).hexdigest(),
        captions=tuple(
            Caption(text, by, language, tokenizer.num_tokens(text))
            for text, by, language in captions_of(clip, sources, cfg)
        ),
        scores={**clip.measures, **place},
    )
