"""The one error type that a user is meant to read."""

import errno


class UserError(ValueError):
    """What was wrong (both values) and what to do. The command line prints it on one line and exits with code 2."""


def from_os_error(error: OSError, action: str) -> UserError:
    """Turns a failed system call during `action` ("writing shards into X") into a message with a remedy."""
    if error.errno == errno.ENOSPC:
        return UserError(f"the disk is full while {action}: free some space or choose another folder, then run again")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return UserError(f"{action} failed: {error.filename} is a file, or lies below one: choose another folder")
    return UserError(f"{action} failed: {error.strerror or error}: {error.filename or ''}".rstrip(": "))
