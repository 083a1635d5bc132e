"""Captions on disk, one line a clip, from the moment that they are there: none is paid for twice.

`DIR/.recaption/captions.jsonl` is appended to, one write a line; a kill costs at most the line that it cuts short,
which is then no line. `options.json` beside it says what made the captions: others are never mixed with them.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from data_pipeline.errors import UserError, from_os_error

FOLDER, CAPTIONS, OPTIONS = ".recaption", "captions.jsonl", "options.json"


class CaptionStaging:
    """The captions of `num_records` records under `out`. Only where each line begins is kept in memory.

    Raises `UserError` for a folder that holds captions of other options, and on a full disk.
    """

    def __init__(self, out: Path, num_records: int, options: Mapping[str, Any]):
        self.folder = out / FOLDER
        self.path = self.folder / CAPTIONS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _settle(self.folder / OPTIONS, options, out)
            self._offsets = _offsets(self.path, num_records)
            self._file = self.path.open("a+b", buffering=0)
            self._end_line()
        except OSError as error:
            raise from_os_error(error, f"writing captions into {self.folder}") from error

    def __enter__(self) -> "CaptionStaging":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __contains__(self, number: int) -> bool:
        return bool(self._offsets[number] >= 0)

    def __len__(self) -> int:
        return int((self._offsets >= 0).sum())

    def append(self, number: int, clip_id: str, caption: str) -> None:
        """Keeps the caption of a record."""
        line = {"record": number, "clip_id": clip_id, "caption": caption}
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        try:
            offset = self._file.seek(0, os.SEEK_END)
            if self._file.write(data) != len(data):
                raise OSError(f"only a part of a line was written to {self.path}")
        except OSError as error:
            raise from_os_error(error, f"writing {self.path}") from error
        self._offsets[number] = offset

    def caption(self, number: int) -> str | None:
        """The caption of a record, if it has one."""
        if number not in self:
            return None
        self._file.seek(self._offsets[number])
        return json.loads(self._file.readline())["caption"]

    def _end_line(self) -> None:
        """A line that a kill cut short must not swallow the next one."""
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Where two sets of options differ, for an error message; empty if they do not."""
    names = sorted(name for name in there.keys() | asked.keys() if there.get(name) != asked.get(name))
    return "; ".join(f"{name} was {_short(there.get(name))} and is {_short(asked.get(name))}" for name in names)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _settle(path: Path, options: Mapping[str, Any], out: Path) -> None:
    """Writes the options, or compares them with those that are there."""
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            there = {}
        if other := differences(there, options):
            raise UserError(f"{out} holds unfinished captions of other options: {other}; choose another --out")
        return
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(dict(options), indent=1, sort_keys=True) + "\n")
    partial.replace(path)


def _offsets(path: Path, num_records: int) -> Int64[np.ndarray, " n"]:
    """Where the line of each record begins; -1 where there is none."""
    offsets = np.full(num_records, -1, np.int64)
    if not path.exists():
        return offsets
    offset = 0
    with path.open("rb") as file:
        for data in file:
            if (number := _record_of(data, num_records)) >= 0:
                offsets[number] = offset
            offset += len(data)
    return offsets


def _record_of(data: bytes, num_records: int) -> int:
    """The record number of a whole line, else -1."""
    try:
        line = json.loads(data)
        number = line["record"]
        return number if isinstance(line["caption"], str) and 0 <= number < num_records else -1
    except (ValueError, KeyError, TypeError):
        return -1
