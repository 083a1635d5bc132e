"""Files of samples: prompts read from one, names of what is written, and the line that says what made it."""

import os
import re
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.generation.manifest import file_digest
from sora_jax.generation.options import SampleOptions

ENDINGS = ("mp4", "webm", "gif", "png")
NAMES = ("slug", "vbench")
MAX_NAME_BYTES = 255
"""Of one file, on the file systems of Linux."""


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, empty lines left out."""
    try:
        # By line feeds alone: `splitlines` would also cut a prompt at the separators that word processors put in.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read prompts from {path}: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write one on each line")
    return prompts


def name_of(names: str, prompt: str, number: int, index: int, ending: str) -> str:
    """The name of sample `number`, the prompt's `index`-th: `<slug>-<number>`, or as VBench reads it,
    `<prompt>-<index>`. Raises UserError for a prompt that is no name of a file as it stands."""
    if names == "slug":
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "prompt"
        return f"{slug}-{number:04d}.{ending}"
    name = f"{prompt}-{index}.{ending}"
    if "/" in prompt or "\0" in prompt:
        raise UserError(f"--names vbench: the prompt '{prompt[:60]}' has a '/', which no file name holds; reword it")
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise UserError(
            f"--names vbench: the prompt '{prompt[:60]}…' makes a file name of {len(os.fsencode(name))} bytes, but "
            f"{MAX_NAME_BYTES} is the most; shorten it, or take --names slug"
        )
    return name


def check_file(path: Path, frames: int) -> None:
    """Raises UserError for a file that cannot be written, or that cannot hold so many frames, or more."""
    ending = path.suffix.lstrip(".").lower()
    if path.is_dir() or any(parent.is_file() for parent in path.parents):
        raise UserError(f"{path} cannot be written: it is a folder, or lies below a file; choose another --out")
    if ending not in ENDINGS:
        raise UserError(f"{path} ends in '{path.suffix}'; choose one of {', '.join('.' + e for e in ENDINGS)}")
    if ending == "png" and frames != 1:
        raise UserError(f"{path} is an image, but there are at least {frames} frames; ask for --frames 1 or for mp4")


def describe(options: SampleOptions, path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What is in a file and all that made it, for the manifest beside it; of resolved options."""
    return {
        "file": path.name,
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
        **options.recipe(),
        **identity,
    }
