"""Files of a folder that may be remote: local paths, and whatever fsspec knows (s3://, gs://, hf://, …)."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

from data_pipeline.errors import PASSING, SystemFailure, UserError

PAUSES_S = (1.0, 4.0)
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)

Result = TypeVar("Result")


def patiently(action: Callable[[], Result], pauses_s: Sequence[float] = PAUSES_S) -> Result:
    """`action()`, again after each pause where it failed by what may pass. Raises what the last try did."""
    tries = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_chain(*map(wait_fixed, pauses_s)),
        stop=stop_after_attempt(len(pauses_s) + 1),
        reraise=True,
    )
    return tries(action)


def _may_pass(error: BaseException) -> bool:
    """By its number, where it has one; clients of object stores raise errors of their own, of which most may pass."""
    if not isinstance(error, Exception):
        return False  # an interruption
    number = error.errno if isinstance(error, OSError) else None
    return not isinstance(error, LASTING) if number is None else number in PASSING


class Storage:
    """A folder by its path or URL. Cheap to pickle. What is written appears whole or not at all."""

    def __init__(self, url: str | Path):
        self.url = str(url).rstrip("/") or "/"
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{url} cannot be opened ({error}): install what fsspec needs for it") from error
        if self.is_local:
            self.url = self._root  # absolute: other processes may have another working directory

    @property
    def is_local(self) -> bool:
        return "file" in self._fs.protocol

    @property
    def local(self) -> Path:
        """The folder's path. Raises `UserError` if it is remote."""
        if not self.is_local:
            raise UserError(f"{self.url} is not on this machine's file system")
        return Path(self._root)

    def exists(self, name: str = "") -> bool:
        return self._fs.exists(self._path(name))

    def is_folder(self) -> bool:
        return self._fs.isdir(self._root)

    def stamp(self, name: str) -> str:
        """Changes when the file does (its time and size, or its ETag), without reading it."""
        return str(self._fs.ukey(self._path(name)))

    def read(self, name: str) -> bytes:
        return self._fs.cat_file(self._path(name))

    def read_range(self, name: str, start: int, size: int) -> bytes:
        return self._fs.cat_file(self._path(name), start=start, end=start + size)

    def open(self, name: str) -> Any:
        """For reading, with seeking."""
        return self._fs.open(self._path(name), "rb")

    def write(self, name: str, data: bytes) -> None:
        """Object stores show an object when it is complete; elsewhere the file gets its name last."""
        path = self._path(name)
        if not self.is_local:
            self._fs.pipe_file(path, data)
            return
        partial_path = Path(f"{path}.part")
        partial_path.parent.mkdir(parents=True, exist_ok=True)
        partial_path.write_bytes(data)
        partial_path.replace(path)

    def upload(self, file: Path, name: str) -> None:
        self._fs.put_file(str(file), self._path(name))

    def download(self, name: str, file: Path) -> None:
        self._fs.get_file(self._path(name), str(file))

    def names(self) -> Iterator[str]:
        """Relative names of all files below the folder, sorted."""
        try:
            found = self._fs.find(self._root)
        except OSError as error:
            raise SystemFailure(f"{self.url} cannot be listed: {error}") from error
        root = self._root.rstrip("/") + "/"
        yield from sorted(path.removeprefix(root) for path in found)

    def clear(self) -> None:
        """Deletes the folder."""
        if self.is_local:
            shutil.rmtree(self._root, ignore_errors=True)
        elif self.exists():
            self._fs.rm(self._root, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root
