"""What lies within a WebDataset shard and within a Parquet table: where the videos are, and what is written of them."""

import json
import tarfile
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.storage import Storage
from data_pipeline.walk import CAPTION_COLUMNS, CaptionLine, caption_line, is_sidecar

TAR_TEXTS = (".txt", ".json")
# Of several files with one key in a tar, the first kind that is there is the source.
TAR_MEDIA = (
    frozenset(
        {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
        | {".3gp", ".ogv", ".mxf"}
    ),
    frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"}),
)

Members = dict[str, dict[str, tarfile.TarInfo]]
Texts = dict[str, dict[str, bytes]]


def tar_contents(folder: Storage, name: str) -> tuple[Members, Texts]:
    """Files that may be sources, and texts: by key and name; of a name that is there twice the last counts, as in
    tar. Raises `UserError` for what is no tar."""
    members: Members = defaultdict(dict)
    texts: Texts = defaultdict(dict)
    try:
        with folder.open(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, dot, ending = member.name.rpartition(".")
                if not member.isfile() or not dot:
                    continue
                if f".{ending}" in TAR_TEXTS:
                    text = tar.extractfile(member)
                    texts[key][member.name] = text.read() if text else b""
                elif not is_sidecar(member.name):
                    members[key][member.name] = member
    except tarfile.TarError as error:
        raise UserError(f"it is no tar archive, or cut off ({error}): copy it again") from error
    return members, texts


def media_of(members: dict[str, tarfile.TarInfo]) -> list[tarfile.TarInfo]:
    """All videos of a key, else its images, else whatever it has, which gets its verdict."""
    for suffixes in TAR_MEDIA:
        found = [member for name, member in members.items() if PurePosixPath(name).suffix.lower() in suffixes]
        if found:
            return found
    return list(members.values())


def tar_line(tar: str, texts: dict[str, bytes]) -> tuple[CaptionLine, ...]:
    """The caption in the texts of one key. Raises `UserError` for a text that is wrong."""
    row, place = {}, tar
    for name, data in texts.items():
        text = data.decode("utf-8", "replace")
        if name.endswith(".txt"):
            row["caption"] = text
            continue
        place = f"{tar}/{name}"
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{place} is not JSON: {error}") from error
        if isinstance(found, dict):
            row |= {column: value for column, value in found.items() if value is not None}
    return line_of(row, place)


def line_of(row: dict[str, Any], place: str) -> tuple[CaptionLine, ...]:
    """The caption in a row of metadata, if there is one; null is none."""
    has_caption = any(row.get(column) is not None for column in CAPTION_COLUMNS)
    return (caption_line(row, place),) if has_caption else ()


def table_contents(folder: Storage, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The first column that holds videos (structs with `bytes`), and the rest of each row. Without one: "" and []."""
    from pyarrow import ArrowInvalid, parquet, types

    with folder.open(name) as file:
        try:
            table = parquet.ParquetFile(file)
        except ArrowInvalid as error:
            raise UserError(f"it is no Parquet file ({error}): copy it again") from error
        fields = {field.name: field.type for field in table.schema_arrow}
        videos = [n for n, kind in fields.items() if types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
        if not videos:
            return "", []
        others = [other for other in fields if other != videos[0]]
        return videos[0], table.read(columns=others).to_pylist() if others else [{}] * table.metadata.num_rows
