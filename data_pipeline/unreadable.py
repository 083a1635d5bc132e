"""Clips that a stream could not read: each is reported once and counted, too many of them end the run."""

import logging
import threading
from pathlib import Path

from data_pipeline.errors import UserError

MAX_SHARE, MIN_READS = 0.25, 200

logger = logging.getLogger(__name__)


class Unreadable:
    """Counts the reads of one process. Safe in threads."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._reads, self._failures = 0, 0
        self._reported: set[int] = set()
        self._lock = threading.Lock()

    def count(self, record: int, error: UserError | None) -> None:
        """A read of `record`, and why it failed if it did.

        Raises UserError once more than `MAX_SHARE` of at least `MIN_READS` reads have failed: what is left is not the
        data set that the run was meant for.
        """
        with self._lock:
            self._reads += 1
            if error is None:
                return
            self._failures += 1
            is_new = record not in self._reported
            self._reported.add(record)
            share = self._failures / self._reads if self._reads >= MIN_READS else 0.0
        if is_new:
            logger.warning("left out an unreadable clip of %s: %s", self.directory, error)
        if share > MAX_SHARE:
            raise UserError(
                f"{self.directory}: {100 * share:.0f}% of {self._reads} clips are unreadable, more than "
                f"{100 * MAX_SHARE:.0f}%, the last being record {record} ({error}): copy or rebuild the data set"
            )
