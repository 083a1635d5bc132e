"""Files of samples: prompts read from one, names of what is written, and the line that says what made it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.generation.options import SampleOptions

ENDINGS = ("mp4", "webm", "gif", "png")


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


def name_files(out: Path, prompts: Sequence[str], ending: str) -> list[Path]:
    """`OUT/<prompt>-<number>.<ending>` for each prompt."""
    if any(path.is_file() for path in (out, *out.parents)):
        raise UserError(f"--out {out} is a file or lies below one, but several prompts need a folder")
    out.mkdir(parents=True, exist_ok=True)
    slugs = (re.sub(r"[^a-z0-9]+", "-", p.lower()).strip("-")[:60] or "prompt" for p in prompts)
    return [out / f"{slug}-{number:04d}.{ending}" for number, slug in enumerate(slugs)]


def check_file(path: Path, frames: int) -> None:
    """Raises UserError for a file that cannot be written, or that cannot hold so many frames."""
    ending = path.suffix.lstrip(".").lower()
    if path.is_dir() or any(parent.is_file() for parent in path.parents):
        raise UserError(f"{path} cannot be written: it is a folder, or lies below a file; choose another --out")
    if ending not in ENDINGS:
        raise UserError(f"{path} ends in '{path.suffix}'; choose one of {', '.join('.' + e for e in ENDINGS)}")
    if ending == "png" and frames != 1:
        raise UserError(f"{path} is an image, but --frames is {frames}; ask for --frames 1 or for mp4")


def describe(options: SampleOptions, path: Path, step: int) -> dict[str, Any]:
    """What made a file, for the manifest beside it; of resolved options."""
    assert isinstance(options.size, tuple), "resolve them first"
    return {
        "file": path.name,
        "path": str(path),
        "prompt": options.prompt,
        "seed": options.seed,
        "size": "{}x{}".format(*options.size),
        "frames": options.frames,
        "fps": options.fps,
        "steps": options.steps,
        "guidance": options.guidance,
        "solver": options.solver,
        "step": step,
        **options.conditions(),
    }
