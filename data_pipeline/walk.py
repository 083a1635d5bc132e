"""What a folder of videos holds: its files, their captions and the groups that must not be torn apart."""

import csv
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

logger = logging.getLogger(__name__)

# Files that lie beside videos and are no video themselves. Everything else is an input and gets a verdict.
SIDECARS = frozenset(
    {".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".html", ".xml", ".yaml", ".yml", ".srt", ".vtt", ".ass", ".log"}
    | {".py", ".sh", ".sha256", ".npy", ".npz", ".parquet"}
)
# What others call the columns of a captions file: Hugging Face's folders, WebDataset's and others' metadata.
CAPTION_FILES = tuple(f"{name}.{ending}" for name in ("captions", "metadata") for ending in ("jsonl", "csv", "parquet"))
PATH_COLUMNS = ("path", "file_name", "video")
CAPTION_COLUMNS = ("caption", "text")
# DROID: <lab>_<weekday>_<month>_<day>_<time>_<year>_<camera serial>; the episode is all but the camera.
DROID_GROUP = r"(?P<group>[0-9a-f]{8}_\w{3}_\w{3}_{1,2}\d{1,2}_\d\d-\d\d-\d\d_\d{4})_\d+\.\w+$"


@dataclass(frozen=True)
class CaptionLine:
    """One line of a captions file; `group` and `license` override what the build would assume for the clip."""

    text: str
    source: str
    language: str
    group: str
    license: str


def find_inputs(videos: Path, exclude: Path) -> list[str]:
    """Relative paths (with `/`) of all files but sidecars and hidden ones, sorted; `exclude` is left out.

    Links to folders are followed; a folder that cannot be read counts as an input, so that it is not lost in silence.
    Raises `UserError` if `videos` is no folder or holds no input.
    """
    if not videos.is_dir():
        raise UserError(f"{videos} is not a folder: pass the folder of videos as --videos")
    found = find_files(videos, exclude, lambda name: not is_sidecar(name))
    if not found:
        raise UserError(f"{videos} holds no videos or images")
    return found


def find_files(folder: Path, exclude: Path | None, keep: Callable[[str], bool]) -> list[str]:
    """Relative paths of all files whose names are to `keep`, and of folders that cannot be read; as `find_inputs`.

    Raises `UserError` if `folder` itself cannot be read.
    """
    visited = {exclude.resolve()} if exclude else set()
    found = sorted(path.relative_to(folder).as_posix() for path in _walk(folder, visited, keep))
    if found == ["."]:
        raise UserError(f"{folder} cannot be read: check its permissions")
    return found


def _walk(videos: Path, visited: set[Path], keep: Callable[[str], bool]) -> Iterator[Path]:
    """Files and unreadable folders. Each folder is `visited` once, links after the folders that lie here."""
    tops = [videos]
    for top in tops:
        unreadable: list[OSError] = []
        for folder, names, files in os.walk(top, onerror=unreadable.append):
            if (real := Path(folder).resolve()) in visited:
                names.clear()
                continue
            visited.add(real)
            names[:] = sorted(name for name in names if not name.startswith("."))
            tops += [link for link in (Path(folder, name) for name in names) if link.is_symlink()]
            yield from (Path(folder, name) for name in files if not name.startswith(".") and keep(name))
        yield from (Path(error.filename) for error in unreadable)


def is_sidecar(name: str) -> bool:
    return Path(name).suffix.lower() in SIDECARS


def printable(path: str) -> str:
    """A path as text that can be stored: bytes that are no UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_captions(path: Path | None, videos: Path) -> dict[str, list[CaptionLine]]:
    """Caption lines by relative path. `path` None means the first of `CAPTION_FILES` in the folder, and in each of its
    subfolders, where paths are relative to that subfolder.

    Columns: path (or file_name, video) and caption (or text), optionally caption_source, language, group, license.
    Raises `UserError` naming the line that is wrong.
    """
    captions: dict[str, list[CaptionLine]] = {}
    for table in [path] if path else _caption_tables(videos):
        prefix = "" if path else f"{table.parent.relative_to(videos).as_posix()}/".removeprefix("./")
        bases = (videos, table.parent) if path else (table.parent,)
        empty = True
        for number, row in metadata_rows(table):
            place = f"{table} line {number}"
            name = named(row, PATH_COLUMNS, place)
            captions.setdefault(_path_within(videos, name, bases, prefix), []).append(caption_line(row, place))
            empty = False
        if empty:
            raise UserError(f"captions file {table} has no captions: write a line a clip, or delete it to go without")
    return captions


def _caption_tables(videos: Path) -> Iterator[Path]:
    """The first of `CAPTION_FILES` of each folder. In subfolders such names may mean something else: tables without the
    columns of captions are passed over, with a warning."""
    seen: set[Path] = set()
    found = [videos / name for name in find_files(videos, None, CAPTION_FILES.__contains__)]
    tables = [path for path in found if path.is_file()]  # no dangling links, and no folders that cannot be read
    for table in sorted(tables, key=lambda path: (path.parent, CAPTION_FILES.index(path.name))):
        if table.parent in seen:
            continue
        seen.add(table.parent)
        first = next((row for _, row in metadata_rows(table)), {}) if table.parent != videos else None
        if first is None or (first.keys() & set(PATH_COLUMNS) and first.keys() & set(CAPTION_COLUMNS)):
            yield table
        else:
            logger.warning("%s has no columns of paths and captions: it is not read", table)


def count_unmatched(lines: Collection[str], paths: Collection[str], place: Path | str) -> int:
    """How many of the captioned files `lines` are not among `paths`, those in `place`; warns of them.

    Raises `UserError` if none is there: then the captions are written in another way than meant.
    """
    known = set(paths)
    unmatched = [name for name in lines if name not in known]
    if lines and paths and len(unmatched) == len(lines):
        raise UserError(
            f"none of the {len(unmatched)} captioned files is in {place}: the captions name '{unmatched[0]}', there is "
            f"'{min(paths)}'; give paths relative to the folder or to the captions file"
        )
    if unmatched:
        logger.warning("%d captioned files are not in %s, the first is %s", len(unmatched), place, unmatched[0])
    return len(unmatched)


def metadata_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row number, row) of a .csv, .jsonl or .parquet file. Raises `UserError` for anything else."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl", ".parquet"):
        raise UserError(f"captions file {path} must end in .csv, .jsonl or .parquet")
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path)
            return
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _csv_rows(file, path) if kind == ".csv" else _json_rows(file, path)
    except csv.Error as error:
        raise UserError(f"captions file {path} is no CSV ({error}): quote a text with commas or line breaks") from error
    except UnicodeDecodeError as error:
        raise UserError(f"captions file {path} is not UTF-8 ({error}): save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"captions file {path} cannot be read: {error.strerror or error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from pyarrow import ArrowInvalid, parquet  # a second, which few need

    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise UserError(f"captions file {path} is no Parquet file ({error})") from error
    yield from enumerate(rows)


def _path_within(videos: Path, name: str, bases: Iterable[Path], prefix: str) -> str:
    """A captioned file's path within `videos`; `name` is absolute or relative to one of `bases`. What is not there is
    called as it is written, behind `prefix`."""
    root = Path(os.path.abspath(videos))
    for base in bases:
        full = Path(os.path.normpath(Path(os.path.abspath(base), name)))
        if full.is_relative_to(root) and full.exists():
            return full.relative_to(root).as_posix()
    return prefix + name.removeprefix("./")


def _csv_rows(file: Any, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, strict=True)
    for row in reader:
        if None in row:
            raise UserError(
                f"{path} line {reader.line_num} has {len(row) - 1 + len(row[None])} columns, the first line "
                f"{len(row) - 1}: quote a text with commas"
            )
        yield reader.line_num, row


def _json_rows(file: Any, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(
                f'{path} line {number} must be an object like {{"path": …, "caption": …}}, not {line[:40]!r}'
            )
        yield number, row


def named(row: dict[str, Any], columns: tuple[str, ...], place: str) -> str:
    """The text in the first of `columns` that is not null. Raises `UserError`, saying `place`, if there is none."""
    value = next((row[column] for column in columns if row.get(column) is not None), None)
    if not isinstance(value, str):
        raise UserError(f"{place} has no text in {columns[0]!r}: it has {sorted(map(str, row))}")
    return value


def _storable(text: str, place: str) -> str:
    """Raises `UserError` for half of a character, as JSON can spell it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start : error.end].encode("unicode_escape").decode()
        raise UserError(f"{place} has {bad}, half of a character (a lone surrogate): mend it") from error
    return text


def caption_line(row: dict[str, Any], place: str) -> CaptionLine:
    """A row's caption and what else it says of its clip. Raises `UserError`, saying `place`, if it has none."""
    columns = ("caption_source", "language", "group", "license", "licence")
    optional = {name: _storable(str(row.get(name) or ""), place) for name in columns}
    return CaptionLine(
        text=_storable(named(row, CAPTION_COLUMNS, place).strip(), place),
        source=optional["caption_source"] or "unknown",
        language=optional["language"] or "und",
        group=optional["group"],
        license=optional["license"] or optional["licence"],
    )


def group_of(path: str, lines: list[CaptionLine], pattern: re.Pattern[str]) -> str:
    """The group of a file: from its captions' metadata, else from its name by the pattern, else the file itself."""
    named = next((line.group for line in lines if line.group), "")
    match = pattern.search(path)
    return named or printable(match.group("group") if match else path)


def group_pattern(text: str) -> re.Pattern[str]:
    """Compiles --group_regex. Raises `UserError` if it is no regular expression with a group named "group"."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"--group_regex {text!r} is not a regular expression: {error}") from error
    if "group" not in pattern.groupindex:
        raise UserError(f"--group_regex {text!r} needs a part (?P<group>…) that names the group")
    return pattern


def heldout_groups(groups: set[str], fraction: float) -> set[str]:
    """The groups that are held out: those whose hash falls below `fraction`, whatever else is there.

    Only if that would leave nothing to train on, the group with the highest hash stays.
    """
    shares = {group: int(hashlib.sha256(group.encode()).hexdigest()[:16], 16) / 2**64 for group in groups}
    held = {group for group, share in shares.items() if share < fraction}
    return held - {max(held, key=lambda group: (shares[group], group))} if held and held == groups else held
