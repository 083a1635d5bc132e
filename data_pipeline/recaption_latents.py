"""The captions of recaptioned clips onto the latents that were encoded from them: nothing is encoded again.

A latent window belongs to the clip that its `clip_id` names before the `@`. Latents lie in the order of their clips, so
both are read once, side by side. What encoded a latent stays true: its `data_fingerprint` is that of the clips which
were encoded, and `captions_fingerprint` in the manifest is that of the clips whose captions it has now.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.build import alone_in
from data_pipeline.errors import UserError, from_os_error
from data_pipeline.recaption import RECAPTIONED
from data_pipeline.records import SPLITS, Caption, LatentRecord
from data_pipeline.shards import Manifest, ShardReader, ShardWriter
from data_pipeline.stream import load_tokenizer

BESIDE = ("autoencoder", "rejected.jsonl")
"""What lies beside the shards of latents and belongs to them: their codec, and the clips that were not encoded."""


def recaption_latents(
    data: Path | str,
    latents: Path | str,
    out: Path | str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes `latents` with all captions of the clips in `data` to `out`; returns counts.

    Raises UserError if `data` holds no clips, or others than were encoded, or counted by another tokenizer, and if
    `out` holds something else.
    """
    data, latents, out = Path(data), Path(latents), Path(out)
    clips, encoded = ShardReader(data, kind="clip"), ShardReader(latents, kind="latent")
    if out.resolve() in (data.resolve(), latents.resolve()):
        raise UserError(f"--out {out} is one of the inputs: choose another folder for the latents")
    _check_same_clips(clips, encoded)
    metadata = {**encoded.manifest.metadata, "captions_fingerprint": clips.manifest.fingerprint}
    metadata["latents_fingerprint"] = encoded.manifest.fingerprint
    if (out / "manifest.json").exists():
        return _finished(out, metadata)
    with alone_in(out):
        _copy_beside(latents, out)
        per_shard = max((shard.num_records for shard in encoded.manifest.shards), default=1)
        tokenizer = load_tokenizer(clips.directory, clips.manifest)
        writer = ShardWriter(out, "latent", per_shard, tokenizer, metadata)
        for done, record in enumerate(_recaptioned(clips, encoded), 1):
            writer.write(record)
            on_progress(done, encoded.num_records())
        return _counts(writer.finish(), out)


def _check_same_clips(clips: ShardReader, latents: ShardReader) -> None:
    """Raises UserError unless the clips are those that were encoded, before or after captions were added to them."""
    steps = clips.manifest.metadata.get(RECAPTIONED, [])
    known = [clips.manifest.fingerprint, *(step["data_fingerprint"] for step in reversed(steps))]
    encoded = latents.manifest.metadata["data_fingerprint"]
    if encoded not in known:
        names = ", ".join(name[:12] for name in known)
        raise UserError(
            f"{latents.directory} was encoded from clips {encoded[:12]}, but {clips.directory} holds {names}: give the "
            "clips that were encoded, recaptioned, or encode these"
        )
    counted, other = clips.manifest.tokenizer_fingerprint, latents.manifest.tokenizer_fingerprint
    if counted != other:
        raise UserError(
            f"the captions of {clips.directory} were counted by tokenizer {str(counted)[:12]}, those of "
            f"{latents.directory} by {str(other)[:12]}: encode the clips anew"
        )


def _recaptioned(clips: ShardReader, latents: ShardReader) -> Iterator[LatentRecord]:
    """The latents in their order, each with its clip's captions."""
    for split in SPLITS:
        captions = _captions(clips, split)
        clip_id, texts = next(captions, ("", ()))
        for number in latents.index.select(split):
            record = latents.read(int(number))
            wanted = record.clip_id.rpartition("@")[0]
            while clip_id != wanted:
                found = next(captions, None)
                if found is None:
                    raise UserError(
                        f"{latents.directory} has latents of the clip {wanted}, which does not follow in the {split} "
                        f"split of {clips.directory}: encode the clips anew"
                    )
                clip_id, texts = found
            yield replace(record, captions=texts)


def _captions(clips: ShardReader, split: str) -> Iterator[tuple[str, tuple[Caption, ...]]]:
    for number in clips.index.select(split):
        record = clips.read(int(number))
        yield record.clip_id, record.captions


def _copy_beside(latents: Path, out: Path) -> None:
    """The files that belong to the latents, before the manifest that makes them a data set."""
    try:
        for source in (latents / name for name in BESIDE):
            if source.is_dir():
                shutil.copytree(source, out / source.name, dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, out / source.name)
    except OSError as error:
        raise from_os_error(error, f"copying what lies beside {latents} to {out}") from error


def _finished(out: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """The counts of finished latents, if they were written from the same."""
    manifest, wanted = Manifest.load(out), json.loads(json.dumps(metadata))
    if manifest.metadata != wanted:
        names = [n for n in sorted(wanted.keys() | manifest.metadata) if manifest.metadata.get(n) != wanted.get(n)]
        raise UserError(f"{out} holds latents of another {', '.join(names)}: choose another --out or delete it")
    return _counts(manifest, out)


def _counts(manifest: Manifest, out: Path) -> dict[str, Any]:
    return {
        "windows": sum(manifest.counts.values()),
        "captions": manifest.num_captions,
        "data_fingerprint": manifest.metadata["data_fingerprint"],
        "captions_fingerprint": manifest.metadata["captions_fingerprint"],
        "out": str(out),
        "fingerprint": manifest.fingerprint,
    }
