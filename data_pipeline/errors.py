"""The one error type that a user is meant to read."""

import errno

EXIT_USER_ERROR, EXIT_SYSTEM_ERROR = 2, 3

PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.ENETDOWN}
    | {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ENOMEM}
)
"""What a shared file system may say today and not tomorrow."""


class UserError(ValueError):
    """What was wrong (both values) and what to do. The command line prints it on one line and exits with `exit_code`:
    it would be the same again."""

    exit_code = EXIT_USER_ERROR


class SystemFailure(UserError):
    """The same, of something that may go better the next time, such as a full disk: launchers start again."""

    exit_code = EXIT_SYSTEM_ERROR


def from_os_error(error: OSError, action: str) -> UserError:
    """Turns a failed system call during `action` ("writing shards into X") into a message with a remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SystemFailure(
            f"the disk is full while {action}: free some space or choose another folder, then run again"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return UserError(f"{action} failed: {error.filename} is a file, or lies below one: choose another folder")
    kind = SystemFailure if error.errno in PASSING else UserError
    return kind(f"{action} failed: {error.strerror or error}: {error.filename or ''}".rstrip(": "))
