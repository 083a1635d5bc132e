"""Everything a sample can be asked for: one frozen record, the same for the command line and for Python.

A field has the name of its flag. What is None is taken from the run's preview when the run is known (`resolved`).
"""

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.video_io import check_memory
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.generation import PreviewConfig, Request
from sora_jax.generation.conditioning import ConditionOptions
from sora_jax.generation.manifest import file_digest

MAX_SEED = 2**31 - 1
OF_EXPANSION = ("expanded_prompt", "expander")
"""What is no flag's, and in no manifest of prompts that are sampled as they are."""


@dataclass(frozen=True)
class SampleOptions(ConditionOptions):
    """One video, or image (`frames` 1). `size` is (width, height) in pixels, or "WIDTHxHEIGHT". Of what is made of a
    video `frames` counts the new ones, or those that are edited; open, they are what fits the trained window, or all.

    `expanded_prompt` is sampled in the prompt's place, if there is one; `expander` says who wrote it.

    Raises UserError for what no run could do; what a run cannot do is said when it is known.
    """

    prompt: str = ""
    negative_prompt: str = ""
    size: tuple[int, int] | str | None = None
    frames: int | None = None
    fps: float | None = None
    seed: int = 0
    steps: int = 20
    guidance: float = 6.0
    solver: str = "unipc"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    shift: float = 0.0
    expanded_prompt: str = ""
    expander: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.size, str):
            object.__setattr__(self, "size", parse_size(self.size))
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"--seed is {self.seed}, but must be from 0 to {MAX_SEED}")
        for name in ("prompt", "expanded_prompt", "negative_prompt"):
            check_text(getattr(self, name), name)
        if self.negative_prompt.strip() and self.guidance == 1.0:
            raise UserError("--negative_prompt has no effect with --guidance 1; ask for more guidance, or leave it out")
        self.sampling()
        if isinstance(self.size, tuple):
            check_memory(self.frames or 1, self.size[1], self.size[0])

    @property
    def text(self) -> str:
        """What is sampled."""
        return self.expanded_prompt or self.prompt

    def sampling(self) -> SamplingConfig:
        """How the way from noise to the sample is solved. Raises UserError for settings that nothing can solve."""
        return SamplingConfig(
            self.steps, self.guidance, self.solver, self.guidance_interval, self.guidance_rescale, self.shift
        )

    def resolved(self, preview: PreviewConfig) -> "SampleOptions":
        """With the run's preview in place of what was left open."""
        return changed(
            self,
            size=self.size or (preview.width, preview.height),
            frames=preview.num_frames if self.frames is None and not self.is_of_video else self.frames,
            fps=preview.fps if self.fps is None else float(self.fps),
        )

    def fewest_frames(self) -> int:
        """So many the result has at least, whatever the length of a video that is not read yet; of resolved options."""
        return (self.frames or 1) + (1 if self.adds_to_video else 0)

    def recipe(self) -> dict[str, Any]:
        """All fields, as a manifest tells them, and the SHA-256 of the files that condition it; of resolved options."""
        assert isinstance(self.size, tuple) and isinstance(self.image, tuple), "resolve them first"
        of_conditions = {field.name for field in dataclasses.fields(ConditionOptions)}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in of_conditions}
        values = {name: value for name, value in values.items() if value or name not in OF_EXPANSION}
        values |= {"size": "{}x{}".format(*self.size), "guidance_interval": list(self.guidance_interval)}
        files = [Path(path) for path in (*self.image, self.video, self.connect, self.mask) if path]
        digests = {"condition_sha256": {str(path): file_digest(path) for path in files}} if files else {}
        return {**values, **self.conditions(), **digests}

    def request(self) -> Request:
        """What the sampler is asked for; of resolved options."""
        assert isinstance(self.size, tuple) and self.frames is not None and self.fps is not None, "resolve them first"
        request = Request(self.text, *self.size, self.frames, self.fps, self.seed)
        return dataclasses.replace(request, negative_prompt=self.negative_prompt)


def changed(options: SampleOptions, **changes: Any) -> SampleOptions:
    """`options` with other values. Raises UserError for a name that is no option, with the nearest ones."""
    known = [field.name for field in dataclasses.fields(SampleOptions)]
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
            raise UserError(f"a sample has no option '{name}'; did you mean {', '.join(near)}?")
    return dataclasses.replace(options, **changes)


def check_text(text: str, name: str) -> None:
    """Raises UserError for what is no text: bytes of another encoding on the command line, or half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--{name} is not UTF-8 text (at character {error.start}): write it in UTF-8") from error


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "WIDTHxHEIGHT". Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise UserError(f"--size is '{text}', but must be WIDTHxHEIGHT in pixels, such as 256x144")
    return int(match[1]), int(match[2])
