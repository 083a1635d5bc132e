"""What there is to curate: sources, each one video or image, and what is written about it.

    a folder                    files, with captions.* or metadata.* (csv, jsonl, parquet): a plain folder, or
                                Hugging Face's VideoFolder and ImageFolder
    a folder with *.tar         WebDataset: <key>.mp4 with <key>.txt and <key>.json beside it
    a folder with *.parquet     Hugging Face `datasets` with a column of videos: structs of `bytes` and `path`
    x.csv, x.jsonl, x.parquet   paths (relative to the file) or URLs, and captions
    x.tar                       one WebDataset shard

Folders and tars may be remote (fsspec); each worker fetches the sources of its own tasks.
"""

import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from data_pipeline.errors import UserError, from_os_error
from data_pipeline.staging import file_checksum
from data_pipeline.storage import Storage
from data_pipeline.walk import (
    CAPTION_COLUMNS,
    CAPTION_FILES,
    PATH_COLUMNS,
    CaptionLine,
    caption_line,
    find_inputs,
    group_of,
    is_sidecar,
    metadata_rows,
    named,
    printable,
    read_captions,
)

METADATA = (".csv", ".jsonl", ".parquet")
TAR_TEXTS = (".txt", ".json")


@dataclass(frozen=True)
class Source:
    """`name` is a file of the folder `url`; `size` bytes at `start` of it are the source (size -1: all), or for
    Parquet (`column` set) the bytes in row `start`. `source_id` is what records call it, `stamp` what it was."""

    source_id: str
    url: str
    name: str
    stamp: str
    lines: tuple[CaptionLine, ...] = ()
    start: int = 0
    size: int = -1
    column: str = ""

    def group(self, pattern: re.Pattern[str]) -> str:
        return group_of(self.source_id, list(self.lines), pattern)


def list_sources(inputs: str, captions: Path | None = None, exclude: Path | None = None) -> list[Source]:
    """All sources, sorted by their ids. Raises `UserError` where there are none, or for metadata that is wrong."""
    try:
        found = list(_sources(inputs, captions, exclude or Path(os.devnull)))
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
    return found


def _sources(inputs: str, captions: Path | None, exclude: Path) -> Iterator[Source]:
    suffix = PurePosixPath(inputs).suffix.lower()
    if suffix in METADATA:
        yield from _from_metadata(Path(inputs))
    elif suffix == ".tar":
        parent, _, name = inputs.rpartition("/")
        yield from _from_tar(Storage(parent or "."), name)
    elif Storage(inputs).is_local:
        yield from _from_folder(Storage(inputs), captions, exclude)
    else:
        yield from _from_remote(Storage(inputs))


def _from_folder(folder: Storage, captions: Path | None, exclude: Path) -> Iterator[Source]:
    root = folder.local
    tables = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.parquet")) if p.name not in CAPTION_FILES]
    tables = [name for name in tables if _video_column(folder, name)]
    for name in tables:
        yield from _from_table(folder, name)
    lines = read_captions(captions, root)
    for name in [] if tables else find_inputs(root, exclude):
        if name.endswith(".tar"):
            yield from _from_tar(folder, name)
        else:
            yield Source(printable(name), folder.url, name, file_checksum(root / name), tuple(lines.get(name, ())))


def _from_remote(folder: Storage) -> Iterator[Source]:
    names = list(folder.names())
    if not names:
        raise UserError(f"{folder.url} holds no files")
    with TemporaryDirectory() as scratch:
        lines: dict[str, list[CaptionLine]] = {}
        for name in [name for name in CAPTION_FILES if name in names][:1]:
            folder.download(name, Path(scratch, name))
            for number, row in metadata_rows(Path(scratch, name)):
                key = named(row, PATH_COLUMNS, Path(name), number).removeprefix("./")
                lines.setdefault(key, []).append(caption_line(row, Path(name), number))
    for name in names:
        if name.endswith(".tar"):
            yield from _from_tar(folder, name)
        elif name.endswith(".parquet") and name not in CAPTION_FILES and _video_column(folder, name):
            yield from _from_table(folder, name)
        elif not is_sidecar(name) and not PurePosixPath(name).name.startswith("."):
            yield Source(name, folder.url, name, folder.stamp(name), tuple(lines.get(name, ())))


def _from_metadata(path: Path) -> Iterator[Source]:
    """One source a path, with all of its lines; the paths are relative to the file, absolute, or URLs."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    lines: dict[str, list[CaptionLine]] = defaultdict(list)
    for number, row in metadata_rows(path):
        name = named(row, PATH_COLUMNS, path, number).removeprefix("./")
        has_caption = any(column in row for column in CAPTION_COLUMNS)
        lines[name] += [caption_line(row, path, number)] if has_caption else []
    for name, own in lines.items():
        if "://" in name:
            parent, _, last = name.rpartition("/")
            yield Source(name, parent, last, Storage(parent).stamp(last), tuple(own))
        else:
            yield Source(printable(name), Storage(path.parent).url, name, file_checksum(path.parent / name), tuple(own))


def _from_tar(folder: Storage, name: str) -> Iterator[Source]:
    """One source for each key of a WebDataset shard; its texts are read here, its video is only located."""
    videos: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, dict[str, Any]] = defaultdict(dict)
    try:
        with folder.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, dot, ending = member.name.rpartition(".")
                if not member.isfile() or not dot:
                    continue
                if f".{ending}" in TAR_TEXTS:
                    texts[key] |= _tar_text(tar, member, ending, Path(name))
                elif not is_sidecar(member.name):
                    videos[key] = member
    except tarfile.TarError as error:
        raise UserError(f"{folder.url}/{name} is no tar archive, or cut off ({error}): copy it again") from error
    stamp = folder.stamp(name)
    for key, member in videos.items():
        row = texts.get(key, {})
        lines = (caption_line(row, Path(name), 0),) if any(column in row for column in CAPTION_COLUMNS) else ()
        place = dict(start=member.offset_data, size=member.size)
        yield Source(printable(f"{name}/{member.name}"), folder.url, name, f"{stamp} {place}", lines, **place)


def _tar_text(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, path: Path) -> dict[str, Any]:
    file = tar.extractfile(member)
    text = file.read().decode("utf-8", "replace") if file else ""
    if ending == "txt":
        return {"caption": text}
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: {member.name} is not JSON: {error}") from error
    return row if isinstance(row, dict) else {}


def _video_column(folder: Storage, name: str) -> str:
    """The first column of a table that holds videos: structs with `bytes`. "" if there is none."""
    from pyarrow import ArrowInvalid, parquet, types

    with folder.open(name) as file:
        try:
            schema = parquet.read_schema(file)
        except ArrowInvalid as error:
            raise UserError(f"{folder.url}/{name} is no Parquet file ({error})") from error
    for column in schema.names:
        kind = schema.field(column).type
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return column
    return ""


def _from_table(folder: Storage, name: str) -> Iterator[Source]:
    from pyarrow import parquet

    column, stamp = _video_column(folder, name), folder.stamp(name)
    with folder.open(name) as file:
        table = parquet.ParquetFile(file)
        others = [other for other in table.schema_arrow.names if other != column]
        rows = table.read(columns=others).to_pylist() if others else [{}] * table.metadata.num_rows
    for number, row in enumerate(rows):
        lines = (caption_line(row, Path(name), number),) if any(column in row for column in CAPTION_COLUMNS) else ()
        yield Source(f"{name}/{number:06d}", folder.url, name, f"{stamp} {number}", lines, number, -1, column)


@contextmanager
def fetched(source: Source) -> Iterator[Path]:
    """The source as a local file, for as long as the context lasts. Raises `OSError` where it cannot be fetched."""
    folder = Storage(source.url)
    if folder.is_local and source.size < 0 and not source.column:
        yield folder.local / source.name
        return
    with TemporaryDirectory() as scratch:
        path = Path(scratch, f"source{PurePosixPath(source.source_id).suffix}")
        if source.column:
            path.write_bytes(_table_bytes(folder, source))
        elif source.size >= 0:
            path.write_bytes(folder.read_range(source.name, source.start, source.size))
        else:
            folder.download(source.name, path)
        yield path


def _table_bytes(folder: Storage, source: Source) -> bytes:
    """The video in a row of a Parquet file; its row group is read for it."""
    from pyarrow import parquet

    row = source.start
    with folder.open(source.name) as file:
        table = parquet.ParquetFile(file)
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).num_rows
            if row < size:
                value = table.read_row_group(group, columns=[source.column]).column(0)[row].as_py()
                return (value or {}).get("bytes") or b""
            row -= size
    raise UserError(f"{source.url}/{source.name} has no row {source.start}: it changed while it was read")
