"""A source as a local file, wherever it is: in a bucket, within a tar, in a row of a Parquet file."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from data_pipeline.curation.sources import Source, why_unread
from data_pipeline.errors import UserError
from data_pipeline.storage import Storage, patiently


class Unfetched(UserError):
    """The bytes of a source are not to be had; its text is for that source's rejection."""


@contextmanager
def fetched(source: Source) -> Iterator[Path]:
    """The source as a local file, for as long as the context lasts. What may pass is tried again.

    Raises `Unfetched` where the source cannot be had, and `OSError` where this machine's disk is full.
    """
    if source.problem:
        raise Unfetched(source.problem)
    folder = Storage(source.url)
    if folder.is_local and source.size < 0 and not source.column:
        yield folder.local / source.name
        return
    with TemporaryDirectory() as scratch:
        path = Path(scratch, f"source{PurePosixPath(source.source_id).suffix}")
        try:
            patiently(partial(_fetch, folder, source, path))
        except Exception as error:  # whatever a client makes of a source that is gone, it ends no run
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Unfetched(why_unread(error)) from error
        yield path


def whole_bytes_of(path: Path) -> bytes:
    """Of a local source, which may be gone since it was examined. Raises `Unfetched` then."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unfetched(why_unread(error)) from error


def _fetch(folder: Storage, source: Source, path: Path) -> None:
    if source.column:
        path.write_bytes(_table_bytes(folder, source))
    elif source.size >= 0:
        path.write_bytes(folder.read_range(source.name, source.start, source.size))
    else:
        folder.download(source.name, path)


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
