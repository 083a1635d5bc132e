"""Small first, then large: a draft says beside it what it was made of, and is refined at the size that was wanted.

The draft's frames are enlarged (bicubic, antialiased, cropped to the new shape), encoded, and sampled from the noise of
time `strength` on (SDEdit, Meng et al. 2021): layout and motion are the draft's, detail is new.
"""

import json
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.video_io import probe
from sora_jax.generation.loading import TrainedRun
from sora_jax.generation.options import OF_EXPANSION, SampleOptions, changed

STRENGTH = 0.6
OF_DRAFT = ("prompt", *OF_EXPANSION, "negative_prompt", "seed", "fps", "steps", "guidance", "solver")


def draft_options(options: SampleOptions, run: TrainedRun) -> SampleOptions:
    """Resolved options at about half the width and height, which the model has."""
    options = options.resolved(run.preview)
    assert isinstance(options.size, tuple)
    width, height = (
        m * max(1, round(n / 2 / m)) for n, m in zip(options.size, run.sampler.size_multiples, strict=True)
    )
    small = width, height
    if small == options.size:
        raise UserError(f"--size {options.size[0]}x{options.size[1]} has no smaller draft: leave --draft out")
    return changed(options, size=small)


def note_of(path: Path) -> Path:
    """The file beside a draft."""
    return path.with_name(f"{path.name}.json")


def write_note(path: Path, line: dict[str, Any], size: tuple[int, int], run: Path) -> dict[str, Any]:
    """Writes beside the draft `path` the line of its manifest with what refines it; returns that."""
    wanted = "{}x{}".format(*size)
    command = (
        f"sora-jax sample --run {run} --upscale {path} --size {wanted} --strength {STRENGTH} --out LARGE{path.suffix}"
    )
    line = {**line, "upscale": {"size": wanted, "strength": STRENGTH, "command": command}}
    note_of(path).write_text(json.dumps(line, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return line


def upscale_options(draft: Path, options: SampleOptions, prompt: str | None) -> SampleOptions:
    """Options that refine `draft`: where `options` are the defaults, and `prompt` is None, what is noted beside it.

    Raises UserError for a note that cannot be read, and where nothing says a prompt or a size.
    """
    path = note_of(draft)
    try:
        note = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        noted = {name: note[name] for name in OF_DRAFT if name in note} | {"size": note.get("upscale", {}).get("size")}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is no note of a draft ({error}): delete it, or make the draft again") from error
    if prompt is not None:  # another one than the draft's, for all that the note knows
        noted = {name: value for name, value in noted.items() if name not in OF_EXPANSION}
    defaults, prompt = SampleOptions(), noted.get("prompt") if prompt is None else prompt
    if prompt is None:
        raise UserError(f"there is no {path} that says what {draft} shows: give its --prompt")
    open_ones = {n: v for n, v in noted.items() if n != "prompt" and getattr(options, n) == getattr(defaults, n)}
    options = changed(options, **{**open_ones, "prompt": prompt})
    if not options.size:
        raise UserError(f"nothing says how large {draft} is to become: give --size")
    strength = STRENGTH if options.strength is None else options.strength
    fps = options.fps or probe(draft).fps
    return changed(options, video=str(draft), strength=strength, fps=fps, image=(), at=(), frames=None)
