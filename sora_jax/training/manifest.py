"""The manifest of a checkpoint, `STEP/digests.json`: size and SHA-256 of each of its files, and of itself.

Orbax stores array chunks without checksums: a flipped byte loads as another number. The manifest is written before
the step is committed, so a committed step without one is damaged, or was saved by a version that had none: that one
says so in its metadata, is read as it is, and counts as unverified.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.training.step_folders import committed_steps, find_checkpoint, sync, tiers_of

DIGESTS = "digests.json"
METADATA = "_CHECKPOINT_METADATA"
FORMAT = 2
"""What `custom_metadata` says of a step that is committed only with its manifest."""
NUM_THREADS = min(8, os.cpu_count() or 1)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FileDigest:
    """What a file was when it was written; `size_bytes` is None in manifests of an older version."""

    sha256: str
    size_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a step was when it was committed; `saved_at` is in seconds since 1970."""

    files: dict[str, FileDigest]
    saved_at: float | None = None

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes or 0 for file in self.files.values())


class ManifestError(ValueError):
    """A manifest that is not what was written; the message completes "it ..."."""


def write_manifest(folder: Path) -> Manifest:
    """Takes the digests of all files of `folder` and puts them into it; everything is on the disk when it returns."""
    names = sorted(list_files(folder))
    for path in {(folder / name).parent for name in names}:
        sync(path)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        digests = pool.map(lambda name: _digest(folder / name, to_disk=True), names)
        sizes = [(folder / name).stat().st_size for name in names]
        files = {n: FileDigest(digest, size) for n, digest, size in zip(names, digests, sizes, strict=True)}
    manifest = Manifest(files, time.time())
    temporary = folder / f"{DIGESTS}.tmp"
    temporary.write_bytes(_encode(dataclasses.asdict(manifest)))
    sync(temporary)
    temporary.replace(folder / DIGESTS)
    sync(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a step; None for one that an older version saved without. Raises ManifestError."""
    try:
        content = (folder / DIGESTS).read_bytes()
    except FileNotFoundError:
        if _is_older(folder):
            return None
        raise ManifestError(f"lacks its manifest {DIGESTS}") from None
    try:
        entries = json.loads(content)
        if isinstance(entries, dict) and entries and all(isinstance(v, str) for v in entries.values()):
            return Manifest({name: FileDigest(digest) for name, digest in entries.items()})
        sha256 = entries.pop("sha256")
        files = {name: FileDigest(**entry) for name, entry in entries["files"].items()}
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ManifestError(f"has a manifest {DIGESTS} that cannot be read") from None
    if _encode(entries) != content:
        found = hashlib.sha256(_body(entries)).hexdigest()
        raise ManifestError(f"has a manifest {DIGESTS} whose sha256 is {found}, but {sha256} was written")
    return Manifest(files, entries["saved_at"])


def find_flaws(
    folder: Path, *, hashes: bool = True, extra: bool = False, share: tuple[int, int] = (0, 1)
) -> Iterator[str]:
    """Each difference between a step's files and its manifest, as words that complete "it ...".

    `hashes` = False compares sizes only. `extra` reports files that the manifest does not know. `share` = (i, n) looks
    at every n-th file from the i-th on, for n processes to do the work together.
    """
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        yield str(error)
        return
    if manifest is None:
        return
    names = sorted(manifest.files)[share[0] :: share[1]]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(lambda name: _flaw_of(folder / name, name, manifest.files[name], hashes), names)
        yield from (flaw for flaw in found if flaw)
    if extra:
        yield from (
            f"has a file {n} that was not saved with it"
            for n in sorted(set(list_files(folder)) - manifest.files.keys())
        )


def is_verifiable(folder: Path) -> bool:
    """Whether there is a manifest to verify the step by."""
    return (folder / DIGESTS).exists() or not _is_older(folder)


def is_good(folder: Path) -> bool:
    """Whether all files of a step are what was written."""
    return next(find_flaws(folder), None) is None


def newest_good(directories: Sequence[Path], before: float = math.inf) -> int | None:
    """The newest undamaged step before `before` in any of the tiers."""
    folders = [d / str(s) for d in directories for s in committed_steps(d) if s < before]
    folders.sort(key=lambda folder: int(folder.name), reverse=True)
    return next((int(folder.name) for folder in folders if is_good(folder)), None)


def verify(folder: Path, *, hashes: bool = True, share: tuple[int, int] = (0, 1)) -> None:
    """Raises UserError if a file of the checkpoint is not what was written, naming the newest good step before it."""
    flaw = next(find_flaws(folder, hashes=hashes, share=share), None)
    if flaw:
        raise damage(folder, flaw)


def find_verified(run: str | Path, step: int | None = None) -> Path:
    """`find_checkpoint`, in the first tier whose copy is what was written. Raises UserError where none is."""
    step = int(find_checkpoint(run, step).name)
    tiers = list(tiers_of(Path(run)).values())
    flaws: list[tuple[Path, str]] = []
    for path in (tier / str(step) for tier in tiers if step in committed_steps(tier)):
        flaw = next(find_flaws(path), None)
        if flaw is None:
            warn_of_copies(flaws, path)
            return path
        flaws.append((path, flaw))
    raise damage(*flaws[-1], tiers, Path(run))


def warn_of_copies(flaws: Sequence[tuple[Path, str]], good: Path) -> None:
    """Says of damaged copies that another tier's is taken instead."""
    for path, why in flaws:
        logger.warning("the checkpoint %s is damaged: it %s; its copy %s is good", path, why, good)


def damage(folder: Path, flaw: str, tiers: Sequence[Path] = (), run: Path | None = None) -> UserError:
    """What to say of a checkpoint that `flaw`, and how to go on from another one of the `tiers` (its own folder's) of
    the run directory `run` (the one that it lies in)."""
    tiers = tiers or [folder.parent]
    good, any_good = newest_good(tiers, int(folder.name)), newest_good(tiers)
    if any_good is not None and good is None:
        remedy = f"no earlier one is good, but the later step {any_good} is: start without --from_step to go on from it"
    elif good is None:
        aside = next((p for tier in tiers for p in sorted(tier.glob("*.aside.*"), reverse=True) if is_good(p)), None)
        remedy = "no earlier one is good: move it away to start again"
        if aside is not None:
            step = aside.name.partition(".")[0]
            remedy = f"no other is good but {aside}, which was set aside: rename it to {step} to go on from there"
    else:
        command = resume_command(run or folder.parents[1], good)
        remedy = f"the newest good one before it is step {good}; to go on from there: {command}"
    return UserError(f"the checkpoint {folder} is damaged: it {flaw}; {remedy}")


def resume_command(run: Path, step: int) -> str:
    """The command that goes on from `step`: the one that the run was last started with, where the run knows it."""
    try:
        command = json.loads((run / "run.json").read_text())["environment"]["command"]
    except (OSError, ValueError, KeyError, TypeError):
        command = f"sora-jax train --config CONFIG.py --workdir {run}"
    return f"{command} --from_step {step}"


def list_files(folder: Path) -> Iterator[str]:
    """The files of a step, relative to it, but for the manifest."""
    for path, _, names in os.walk(folder):
        relative = (str((Path(path) / name).relative_to(folder)) for name in names)
        yield from (name for name in relative if name not in (DIGESTS, f"{DIGESTS}.tmp"))


def _flaw_of(path: Path, name: str, written: FileDigest, hashes: bool) -> str | None:
    try:
        size = path.stat().st_size
        if written.size_bytes not in (None, size):
            return f"has a file {name} of {size:,} bytes, but {written.size_bytes:,} were written"
        found = _digest(path) if hashes else written.sha256
    except FileNotFoundError:
        return f"lacks its file {name}"
    if found != written.sha256:
        return f"has a file {name} whose sha256 is {found}, but {written.sha256} was written"
    return None


def _is_older(folder: Path) -> bool:
    """Whether a step's metadata can be read and does not promise a manifest."""
    try:
        about = json.loads((folder / METADATA).read_text())["custom_metadata"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return not isinstance(about, dict) or about.get("format", 1) < FORMAT


def _digest(path: Path, to_disk: bool = False) -> str:
    with path.open("rb") as file:
        if to_disk:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _body(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1).encode()


def _encode(content: Mapping[str, Any]) -> bytes:
    """Always the same bytes for the same content, with their own digest: any changed byte shows."""
    return _body({**content, "sha256": hashlib.sha256(_body(content)).hexdigest()}) + b"\n"
