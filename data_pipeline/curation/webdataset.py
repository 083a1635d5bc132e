"""A curated data set as WebDataset: tar shards of `<key>.mp4`, `<key>.txt` (the first caption) and `<key>.json`."""

import dataclasses
import io
import json
import mimetypes
import os
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.records import SPLITS, ClipRecord
from data_pipeline.shards import sha256_of

MANIFEST = "dataset.json"


class WebDatasetWriter:
    """Writes `<split>-00000.tar …` and, last, `dataset.json`; equal records in equal order give equal bytes."""

    def __init__(self, directory: Path, records_per_shard: int, metadata: Mapping[str, Any]):
        if (directory / MANIFEST).exists():
            raise UserError(f"{directory} already holds a finished data set: choose another folder or delete it")
        self.directory, self.records_per_shard, self._metadata = directory, records_per_shard, dict(metadata)
        self._writing = directory / ".writing"
        shutil.rmtree(self._writing, ignore_errors=True)
        self._writing.mkdir(parents=True)
        self._counts = dict.fromkeys(SPLITS, 0)
        self._tars: dict[str, tarfile.TarFile] = {}

    def write(self, record: ClipRecord) -> None:
        number = self._counts[record.split]
        if number % self.records_per_shard == 0:
            self._close(record.split)
            name = f"{record.split}-{number // self.records_per_shard:05d}.tar"
            self._tars[record.split] = tarfile.TarFile(self._writing / name, "w", format=tarfile.USTAR_FORMAT)
        self._counts[record.split] += 1
        tar, key = self._tars[record.split], f"{number:09d}"
        plain = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "video"}
        plain["captions"] = [dataclasses.asdict(caption) for caption in record.captions]
        plain["caption"] = record.captions[0].text if record.captions else ""
        _add(tar, f"{key}{mimetypes.guess_extension(record.media_type) or '.mp4'}", record.video)
        _add(tar, f"{key}.json", json.dumps(plain, sort_keys=True, ensure_ascii=False).encode())
        if record.captions:
            _add(tar, f"{key}.txt", plain["caption"].encode())

    def finish(self) -> dict[str, int]:
        """Publishes everything; returns the number of records by split."""
        for split in SPLITS:
            self._close(split)
        files = {path.name: sha256_of(path) for path in sorted(self._writing.iterdir())}
        plain = {"counts": self._counts, "files": files, "metadata": self._metadata}
        (self._writing / MANIFEST).write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n")
        for name in [*files, MANIFEST]:
            os.replace(self._writing / name, self.directory / name)
        self._writing.rmdir()
        return dict(self._counts)

    def _close(self, split: str) -> None:
        if split in self._tars:
            self._tars.pop(split).close()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
