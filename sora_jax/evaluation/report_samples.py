"""What a report's page plays: samples with their verdicts, previews step by step, the same draw of several runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.video_io import Frames, encode_video
from sora_jax.evaluation.figures import MEDIA_TYPES, bytes_uri, data_uri, frame_strip, png_uri
from sora_jax.evaluation.inputs import SAMPLES, read_sample, read_samples
from sora_jax.evaluation.report_curves import EVALUATIONS

VIDEO_ENDINGS = (".mp4", ".webm")
PREVIEWS = "previews"
MOST_STEPS, MOST_PROMPTS = 6, 8
DRAWN_BY = ("negative_prompt", "size", "frames", "fps", "steps", "guidance", "solver", "ema")
"""What else decides a sample, in its line."""


class Medium(NamedTuple):
    """One picture or video, inlined."""

    uri: str
    is_video: bool
    aspect: str = "auto"


class Matrix(NamedTuple):
    """Rows of media, one a column: `heads` are (name, small print), rows (prompt, small print, media). Without a
    `corner` it is a few large pictures under one line of text."""

    corner: str
    heads: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Medium | None]]]


def judged_samples(directory: Path, evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every sample with its media inlined and, where it was judged, its verdicts."""
    judged = {entry["file"]: entry for entry in evaluation.get("samples", [])}
    shown = []
    for entry in read_samples(directory):
        verdict = judged.get(entry["file"], {"obeyed": False, "verdicts": []})
        frames = read_sample(directory, entry)
        told = {"prompt": entry["prompt"], "strip": png_uri(frame_strip(frames))}
        shown.append(
            told
            | {"medium": _medium(directory / entry["file"], frames)}
            | {name: verdict[name] for name in ("obeyed", "verdicts")}
        )
    return shown


def by_checkpoint(run: Path, config: Mapping[str, Any]) -> list[Matrix]:
    """The run's previews, and samples that a follower drew, a column for each of at most `MOST_STEPS` steps."""
    return [matrix for matrix in (_previews(run, config), _reconstructions(run), _followed(run)) if matrix]


def compared(folders: Sequence[Path], heads: Sequence[tuple[str, str]], order: Sequence[int]) -> tuple[Matrix, str]:
    """The same prompt and seed of several runs beside each other, in the given order of columns, and a note of what
    else differs. Raises UserError where prompts or seeds do."""
    entries = [{(e["prompt"], e.get("seed")): e for e in read_samples(folder)} for folder in folders]
    for folder, one in zip(folders[1:], entries[1:], strict=True):
        if list(one) != list(entries[0]):
            missing, surplus = (_named(a.keys() - b.keys()) for a, b in ((entries[0], one), (one, entries[0])))
            raise UserError(
                f"{folders[0]} and {folder} do not show the same draws: only the first has {missing}; only the second "
                f"has {surplus}; sample each run with the same --prompts and --seed"
            )
    shown = list(entries[0])[:MOST_PROMPTS]
    rows = [(*_row_name(*key), [_read(folders[i], entries[i][key]) for i in order]) for key in shown]
    others = [
        f"{name} ({', '.join(str(one[key].get(name)) for one in entries)})"
        for name in DRAWN_BY
        if len({str(one[key].get(name)) for one in entries for key in shown[:1]}) > 1
        for key in shown[:1]
    ]
    left = len(entries[0]) - len(shown)
    notes = [f"They also differ in {', '.join(others)}."] if others else []
    notes += [f"{left} more draws are in the folders."] if left else []
    return Matrix("prompt", [heads[i] for i in order], rows), " ".join(notes)


def sampled_step(folder: Path) -> int | None:
    """The checkpoint that a folder of samples was drawn from, where its lines say so."""
    return read_samples(folder)[0].get("step")


def _previews(run: Path, config: Mapping[str, Any]) -> Matrix | None:
    """`previews/samples_STEP.png` holds a line of frames for each prompt: cut apart again, and played."""
    preview = config.get("preview", {})
    sheets = _spread(_by_step(run / PREVIEWS, "samples_*.png"))
    prompts = list(preview.get("prompts", ()))[:MOST_PROMPTS]
    if not sheets or not prompts:
        return None
    columns = [_cut(path, preview, len(prompts)) for path in sheets.values()]
    rows = [
        (prompt, "", [column[i] if i < len(column) else None for column in columns]) for i, prompt in enumerate(prompts)
    ]
    return Matrix("prompt", [(f"step {step:,}", "") for step in sheets], rows)


def _cut(path: Path, preview: Mapping[str, Any], most: int) -> list[Medium]:
    """A video for each line of a sheet; [] for a sheet of another size than the config's, an older one."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    height, width = int(preview.get("height", 32)), int(preview.get("width", 32))
    if sheet.shape[0] % height or sheet.shape[1] % width:
        return []
    lines = [sheet[top : top + height] for top in range(0, sheet.shape[0], height)][:most]
    clips = [np.stack(np.split(line, sheet.shape[1] // width, axis=1)) for line in lines]
    return [_playing(clip, float(preview.get("fps", 8.0))) for clip in clips]


def _playing(frames: Frames, fps: float) -> Medium:
    aspect = f"{frames.shape[2]}/{frames.shape[1]}"
    if len(frames) == 1:
        return Medium(png_uri(frames[0]), False, aspect)
    return Medium(bytes_uri(encode_video(frames, fps, "mp4"), MEDIA_TYPES[".mp4"]), True, aspect)


def _reconstructions(run: Path) -> Matrix | None:
    """An autoencoder's previews: sheets of clips above what became of them."""
    sheets = _by_step(run / PREVIEWS, "reconstructions_*.png")
    if not sheets:
        return None
    ends = {step: sheets[step] for step in (min(sheets), max(sheets))}
    media: list[Medium | None] = [Medium(data_uri(path), False) for path in ends.values()]
    return Matrix(
        "", [(f"step {step:,}", "") for step in ends], [("Real frames, below each their reconstruction.", "", media)]
    )


def _followed(run: Path) -> Matrix | None:
    """Samples that `evaluate --follow` drew for the same prompts and seeds at each checkpoint."""
    found: dict[int, Path] = {}
    for path in sorted((run / EVALUATIONS).glob(f"*_samples/*/{SAMPLES}")):
        step, _, parameters = path.parent.name.partition("_")
        if step.isdigit() and (parameters == "ema" or int(step) not in found):
            found[int(step)] = path.parent
    folders = _spread(dict(sorted(found.items())))
    entries = {step: {(e["prompt"], e.get("seed")): e for e in read_samples(f)} for step, f in folders.items()}
    shown = [key for key in next(iter(entries.values()), {}) if all(key in one for one in entries.values())]
    if not shown:
        return None
    rows = [
        (*_row_name(*key), [_read(folder, entries[step][key]) for step, folder in folders.items()])
        for key in shown[:MOST_PROMPTS]
    ]
    return Matrix("prompt", [(f"step {step:,}", "") for step in folders], rows)


def _by_step(folder: Path, pattern: str) -> dict[int, Path]:
    found = {path.stem.rpartition("_")[2]: path for path in folder.glob(pattern)}
    return dict(sorted((int(step), path) for step, path in found.items() if step.isdigit()))


def _spread(by_step: dict[int, Path]) -> dict[int, Path]:
    """At most `MOST_STEPS`, the first and the last among them."""
    steps = list(by_step)
    chosen = np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps))).round().astype(int)
    return {steps[i]: by_step[steps[i]] for i in chosen}


def _read(folder: Path, entry: dict[str, Any]) -> Medium:
    return _medium(folder / entry["file"], read_sample(folder, entry))


def _medium(path: Path, frames: Frames) -> Medium:
    return Medium(data_uri(path), path.suffix.lower() in VIDEO_ENDINGS, f"{frames.shape[2]}/{frames.shape[1]}")


def _row_name(prompt: str, seed: int | None) -> tuple[str, str]:
    return prompt, "" if seed is None else f"seed {seed}"


def _named(keys: Iterable[tuple[str, Any]]) -> str:
    """A few of the draws, as JSON; `nothing` for none."""
    chosen = sorted(keys, key=str)
    more = f" and {len(chosen) - 2} more" if len(chosen) > 2 else ""
    return ", ".join(f"prompt {json.dumps(p)} with seed {s}" for p, s in chosen[:2]) + more or "nothing"
