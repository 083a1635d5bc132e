"""What is in a folder of samples, and what made it: `recipe.json`, and `samples.jsonl` with a line for each file.

While a job runs, each of its processes appends lines to a part of its own, one write a line, after the file is in
place: a kill at any moment loses at most the line of a file that is then made again. When all is there the parts are
merged. A folder holds samples of one recipe.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, from_os_error

RECIPE, MERGED, PART = "recipe.json", "samples.jsonl", "samples.{}-of-{}.part.jsonl"
EXPANDED = "expanded_prompts.jsonl"


class Manifest:
    """The lines of the folder `out`; this process is number `index` of `count` that write to it.

    Raises UserError where `out` is no folder, or holds samples of another recipe.
    """

    def __init__(self, out: Path, recipe: Mapping[str, Any], index: int = 0, count: int = 1):
        self.out, self._part = out, out / PART.format(index, count)
        try:
            out.mkdir(parents=True, exist_ok=True)
            self.recipe = _settle_recipe(out, recipe)
        except OSError as error:
            raise from_os_error(error, f"writing samples into {out}") from error

    def lines(self) -> dict[int, dict[str, Any]]:
        """Number of a sample -> its line, of those whose file is there as it was written."""
        # The parts first: a process that merges them writes the whole before it takes them away.
        found = [line for path in (*_parts(self.out), self.out / MERGED) for line in read_lines(path)]
        return {line["number"]: line for line in found if isinstance(line.get("number"), int) and self._is_there(line)}

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds the line of a file that is in place; safe from several threads."""
        append_line(self._part, {**line, "recipe": self.recipe})

    def merge(self, num: int) -> int:
        """Puts the lines of all processes into `samples.jsonl`, in order, if the samples 0 … `num` - 1 are all there.
        Returns how many of them are missing."""
        lines = self.lines()
        missing = sum(number not in lines for number in range(num))
        if missing:
            return missing
        partial = self.out / f".{MERGED}.{os.getpid()}.part"
        partial.write_text("".join(json.dumps(lines[number]) + "\n" for number in sorted(lines)))
        partial.replace(self.out / MERGED)
        for path in _parts(self.out):
            path.unlink(missing_ok=True)
        return 0

    def _is_there(self, line: Mapping[str, Any]) -> bool:
        try:
            return line["recipe"] == self.recipe and (self.out / line["file"]).stat().st_size == line["bytes"]
        except (OSError, KeyError):
            return False


def forget(out: Path) -> None:
    """Makes the folder one without a recipe: the next job makes all of its samples."""
    for path in (out / RECIPE, out / MERGED, out / EXPANDED, *_parts(out)):
        path.unlink(missing_ok=True)


def digest(value: Any) -> str:
    """SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises UserError for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error


def _parts(out: Path) -> list[Path]:
    return sorted(out.glob(PART.format("*", "*")))


def _settle_recipe(out: Path, recipe: Mapping[str, Any]) -> str:
    """The recipe's digest, once the folder says that it is of this recipe."""
    path, wanted = out / RECIPE, json.loads(json.dumps(recipe))
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            there = {}
        names = [name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)]
        if names:
            said = "; ".join(f"{n} was {_short(there.get(n))} and is {_short(wanted.get(n))}" for n in sorted(names))
            raise UserError(
                f"--out {out} holds samples of another recipe: {said}; choose another --out, or begin anew with "
                "--overwrite"
            )
    elif (out / MERGED).exists():
        raise UserError(f"--out {out} holds samples without a recipe; choose another --out, or --overwrite them")
    else:
        partial = out / f".{RECIPE}.{os.getpid()}.part"
        partial.write_text(json.dumps(wanted, indent=1) + "\n")
        partial.replace(path)
    return digest(wanted)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:24]}…"


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """One line of JSON more, in one write."""
    data = (json.dumps(line) + "\n").encode()
    try:
        with path.open("ab", buffering=0) as file:
            if file.tell() and not _ends_with_newline(path):
                data = b"\n" + data  # a line that a kill cut short must not swallow this one
            file.write(data)
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; one that a kill cut short is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:  # merged by another process in the meantime
        return
    for text in data.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
