"""Compiled programs kept on disk, so that a second start finds what the first one compiled (JAX's persistent cache).

What is kept is found again by the program, its shapes, jax's and XLA's versions and the devices: nothing has to be
cleared by hand, and what is too old is merely not found. The folder is trusted: whoever may write there can run code
in later starts, so the default lies in the user's own cache folder and nobody else may enter it.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import UserError

logger = logging.getLogger(__name__)

OFF = "off"
HELP = (
    "folder of compiled programs, 'off' for none (default: $JAX_COMPILATION_CACHE_DIR, or sora_jax/jax in the user's "
    "cache folder)"
)
VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MIN_COMPILE_S = 0.3
"""What is compiled faster is compiled again: reading it would save little. JAX's own 1 s leaves out most of a small
model's programs."""


def use_compile_cache(folder: str | None = None) -> None:
    """Keeps compiled programs in `folder`, and looks for them there, from now on; "off" keeps none.

    Without a `folder` it is $JAX_COMPILATION_CACHE_DIR, else `default_folder()`, and where that cannot be written there
    is no cache, and a warning. Raises UserError for a `folder` that cannot be written.
    """
    import jax  # not above: the verbs say what their options are before they need it

    if folder == OFF:
        _enable(False)
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
    if not folder and os.environ.get(VARIABLE):
        return  # JAX has read it
    is_bucket = "://" in (folder or "")
    try:
        path = folder or str(default_folder())
        if not is_bucket:
            os.makedirs(path, mode=0o700, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        message = f"compiled programs cannot be kept ({error}); name another folder with --compile_cache, or '{OFF}'"
        if folder:
            raise UserError(message) from error
        logger.warning("%s", message)
        return
    jax.config.update("jax_compilation_cache_dir", path)


@contextlib.contextmanager
def without_compile_cache() -> Iterator[None]:
    """Programs are neither read nor kept within: those whose compilation is timed, and those for devices that are not
    here, which can be kept but not read again. The cache is the process's: not for several threads at once.
    """
    import jax

    was = jax.config.jax_enable_compilation_cache
    try:
        _enable(False)
        yield
    finally:
        _enable(was)


def _enable(is_enabled: bool) -> None:
    """JAX looks at its option when the first program of a process is compiled and never again, until it is reset."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    jax.config.update("jax_enable_compilation_cache", is_enabled)
    reset_cache()


def default_folder() -> Path:
    """`sora_jax/jax` in the user's cache folder: $XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()) / "sora_jax" / "jax"
