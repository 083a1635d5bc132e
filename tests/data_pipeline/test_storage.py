"""Errors that may pass are tried again, others are not."""

import errno

import pytest

from data_pipeline.storage import patiently


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(errno.EIO, "input/output error"), 3),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), 3),
        (TimeoutError("no answer"), 3),
        (RuntimeError("what a client of an object store raises"), 3),
        (FileNotFoundError("bucket/a.mp4"), 1),
        (PermissionError(errno.EACCES, "permission denied"), 1),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), 1),
        (ValueError("damaged"), 1),
    ],
)
def test_what_may_pass_is_tried_again(error, tries):
    calls = []

    def fails() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently(fails, pauses_s=(0.0, 0.0))
    assert len(calls) == tries


def test_what_has_passed_gives_its_result():
    left = [OSError(errno.ETIMEDOUT, "timed out")]

    def fails_once() -> str:
        if left:
            raise left.pop()
        return "there"

    assert patiently(fails_once, pauses_s=(0.0,)) == "there"
