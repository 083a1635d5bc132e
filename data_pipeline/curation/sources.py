"""What there is to curate: sources, each one video or image, and what is written about it.

    a folder                    files, with captions.* or metadata.* (csv, jsonl, parquet): a plain folder, or
                                Hugging Face's VideoFolder and ImageFolder
    a folder with *.tar         WebDataset: <key>.mp4 with <key>.txt and <key>.json beside it
    a folder with *.parquet     Hugging Face `datasets` with a column of videos: structs of `bytes` and `path`
    x.csv, x.jsonl, x.parquet   paths (relative to the file) or URLs, and captions
    x.tar                       one WebDataset shard
    anything else               one video or image

Folders, tars and files may be remote (fsspec); each worker fetches the sources of its own tasks (`fetch.py`). What
cannot be read is a source with a `problem`: it costs itself, not the run.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from data_pipeline.curation.containers import line_of, media_of, table_contents, tar_contents, tar_line
from data_pipeline.errors import UserError, from_os_error
from data_pipeline.staging import file_checksum
from data_pipeline.storage import Storage, patiently
from data_pipeline.walk import (
    CAPTION_FILES,
    PATH_COLUMNS,
    CaptionLine,
    count_unmatched,
    find_files,
    group_of,
    is_sidecar,
    metadata_rows,
    named,
    printable,
    read_captions,
)

METADATA = (".csv", ".jsonl", ".parquet")
Lines = dict[str, list[CaptionLine]]


@dataclass(frozen=True)
class Source:
    """`name` is a file of the folder `url`; `size` bytes at `start` of it are the source (size -1: all), or for
    Parquet (`column` set) the bytes in row `start`. `source_id` is what records call it, `stamp` what it was;
    `problem` says why it cannot be read, where that is known already."""

    source_id: str
    url: str
    name: str
    stamp: str
    lines: tuple[CaptionLine, ...] = ()
    start: int = 0
    size: int = -1
    column: str = ""
    problem: str = ""

    def group(self, pattern: re.Pattern[str]) -> str:
        return group_of(self.source_id, list(self.lines), pattern)

    @property
    def path(self) -> str:
        """What a captions file calls it: a file by its path as it is, what lies within a file by its id."""
        return self.source_id if self.column or self.size >= 0 else self.name


def list_sources(inputs: str, captions: Path | None = None, exclude: Path | None = None) -> tuple[list[Source], int]:
    """All sources, sorted by their ids, and how many captioned files are none of them.

    Raises `UserError` where there are none, none can be read, none is captioned though captions are given, or for
    metadata that is wrong.
    """
    try:
        found, lines = _listing(inputs, captions, exclude)
    except OSError as error:
        raise from_os_error(error, f"listing {inputs}") from error
    if not found:
        raise UserError(f"{inputs} holds no videos or images")
    found.sort(key=lambda source: source.source_id)
    twice = [a.source_id for a, b in pairwise(found) if a.source_id == b.source_id]
    if twice:
        raise UserError(
            f"{inputs} names {len(twice)} sources twice, the first is {twice[0]}: give each one line or file"
        )
    if all(source.problem for source in found):
        raise UserError(f"nothing of {inputs} can be read; of {found[0].source_id}: {found[0].problem}")
    unmatched = count_unmatched(lines, [source.path for source in found], inputs)
    return [replace(source, lines=(*lines.get(source.path, ()), *source.lines)) for source in found], unmatched


def _listing(inputs: str, captions: Path | None, exclude: Path | None) -> tuple[list[Source], Lines]:
    """The sources, with what is written within them; and the lines of captions files."""
    suffix = PurePosixPath(inputs).suffix.lower()
    if suffix in METADATA:
        if captions:
            raise UserError(f"--captions {captions} is for folders and tars: write captions into {inputs} itself")
        return list(_from_metadata(Path(inputs))), {}
    folder = Storage(inputs)
    # A folder's name may have a dot; without one, a bucket is not asked.
    if suffix == ".tar" or ((suffix or folder.is_local) and folder.exists() and not folder.is_folder()):
        url, _, name = folder.url.rpartition("/")
        parent = Storage(url or "/")
        found = list(_from_tar(parent, name)) if suffix == ".tar" else [_file(printable(name), parent.url, name)]
        return found, _given(captions, parent) if captions else {}
    if folder.is_local and not folder.is_folder():
        raise UserError(
            f"--inputs {inputs} is not there: give a folder, a list ({', '.join(METADATA)}), a .tar or a video"
        )
    names = find_files(folder.local, exclude, _is_source) if folder.is_local else _remote_names(folder)
    lines = _given(captions, folder) if captions or folder.is_local else _remote_captions(folder, names)
    return list(_from_folder(folder, names)), lines


def _given(captions: Path | None, folder: Storage) -> Lines:
    """Nothing of a remote folder is there to look for: what the lines name stays as it is written."""
    return read_captions(captions, folder.local if folder.is_local or not captions else captions.parent)


def _remote_names(folder: Storage) -> list[str]:
    names = [name for name in folder.names() if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise UserError(f"{folder.url} holds no files")
    return names


def _remote_captions(folder: Storage, names: Iterable[str]) -> Lines:
    with TemporaryDirectory() as scratch:
        for name in names:
            if PurePosixPath(name).name in CAPTION_FILES:
                Path(scratch, name).parent.mkdir(parents=True, exist_ok=True)
                patiently(partial(folder.download, name, Path(scratch, name)))
        try:
            return read_captions(None, Path(scratch))
        except UserError as error:
            raise UserError(str(error).replace(scratch, folder.url)) from error


def _is_source(name: str) -> bool:
    """Parquet files may be tables of videos."""
    return not is_sidecar(name) or (name.endswith(".parquet") and PurePosixPath(name).name not in CAPTION_FILES)


def _from_folder(folder: Storage, names: Iterable[str]) -> Iterator[Source]:
    for name in filter(_is_source, names):
        if name.endswith(".tar"):
            yield from _from_tar(folder, name)
        elif name.endswith(".parquet"):
            yield from _from_table(folder, name)
        else:
            yield _file(printable(name), folder.url, name)


def _from_metadata(path: Path) -> Iterator[Source]:
    """One source a path, with all of its lines; the paths are relative to the file, absolute, or URLs."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    lines: dict[str, tuple[CaptionLine, ...]] = defaultdict(tuple)
    for number, row in metadata_rows(path):
        place = f"{path} line {number}"
        lines[named(row, PATH_COLUMNS, place).removeprefix("./")] += line_of(row, place)
    for name, own in lines.items():
        if "://" in name:
            parent, _, last = name.rpartition("/")
            yield replace(_file(name, parent, last), lines=own)
        else:
            yield replace(_file(printable(name), str(path.parent), name), lines=own)


def _file(source_id: str, url: str, name: str) -> Source:
    """A whole file. Of a local one that cannot be read, the probe says why."""
    try:
        folder = Storage(url)
        is_local = folder.is_local
        stamp = file_checksum(folder.local / name) if is_local else patiently(partial(folder.stamp, name))
    except Exception as error:  # whatever a client makes of an address, it ends no run
        return Source(source_id, url, name, "", problem=why_unread(error))
    return Source(source_id, folder.url, name, stamp)


def why_unread(error: Exception) -> str:
    """A source's `problem` by what reading it raised."""
    return str(error) if isinstance(error, UserError) else f"fetching it fails: {type(error).__name__}: {error}"


def _written(line: Callable[[], tuple[CaptionLine, ...]]) -> dict[str, Any]:
    """`lines` of a source, or the `problem` that they are."""
    try:
        return {"lines": line()}
    except UserError as error:
        return {"problem": str(error)}


def _from_tar(folder: Storage, name: str) -> Iterator[Source]:
    """The videos of each key of a WebDataset shard; its texts are read here, a video is only located."""
    try:
        stamp = patiently(partial(folder.stamp, name))
        members, texts = patiently(partial(tar_contents, folder, name))
        if not members:
            raise UserError("it holds no videos or images")
    except Exception as error:  # as in `_file`
        yield Source(printable(name), folder.url, name, "", problem=why_unread(error))
        return
    for key, own in members.items():
        written = _written(partial(tar_line, name, texts.get(key, {})))
        for member in media_of(own):
            place = dict(start=member.offset_data, size=member.size)
            source_id = printable(f"{name}/{member.name}")
            yield Source(source_id, folder.url, name, f"{stamp} {place}", **place, **written)


def _from_table(folder: Storage, name: str) -> Iterator[Source]:
    """The rows of a table of videos; of another table, nothing."""
    try:
        stamp = patiently(partial(folder.stamp, name))
        column, rows = patiently(partial(table_contents, folder, name))
    except Exception as error:  # as in `_file`
        yield Source(printable(name), folder.url, name, "", problem=why_unread(error))
        return
    for number, row in enumerate(rows):
        written = _written(partial(line_of, row, f"{name} row {number}"))
        source_id = f"{name}/{number:06d}"
        yield Source(source_id, folder.url, name, f"{stamp} {number}", start=number, column=column, **written)
