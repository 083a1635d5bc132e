"""What a caption server is asked: Jinja templates filled in, and frames as JPEG in data URLs."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.recaption import ClipView
from data_pipeline.records import Caption

TEMPLATES = Path(__file__).with_name("templates")
DESCRIBE_CLIP, EXPAND_PROMPT = TEMPLATES / "describe_clip.txt", TEMPLATES / "expand_prompt.txt"
CLIP_FACTS = ("num_frames", "times_s", "duration_s", "fps", "width", "height", "captions")
"""What a template for clips may name; `captions` are those that the clip has, with text, source and language."""
JPEG_QUALITY = 90
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？]")
_EXAMPLE: dict[str, Any] = {
    "num_frames": 2, "times_s": (0.0, 1.0), "duration_s": 2.0, "fps": 1.0, "width": 64, "height": 48,
    "captions": (Caption("a red ball", "human"),),
    "prompt": "a red ball",
}  # fmt: skip

Message = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """A Jinja template; `where` is its file."""

    where: str
    text: str
    compiled: jinja2.Template

    def __call__(self, facts: Mapping[str, Any]) -> str:
        """Filled in. Raises UserError where that fails."""
        try:
            return self.compiled.render(**facts).strip()
        except Exception as error:  # a template is the user's program: whatever it raises is about the template
            raise UserError(f"the template {self.where} fails: {type(error).__name__}: {error}") from error


def read_template(path: Path | str, names: Sequence[str]) -> Template:
    """Raises UserError for a file that cannot be read, is empty, is no template, or names something beside `names`."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        unknown = sorted(jinja2.meta.find_undeclared_variables(environment.parse(text)) - set(names))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the template {path}: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{path}:{error.lineno} is no Jinja template: {error.message}") from error
    if unknown:
        raise UserError(f"the template {path} names {', '.join(unknown)}; it can name {', '.join(names)}")
    template = Template(str(path), text, environment.from_string(text))
    if not template({name: _EXAMPLE[name] for name in names}):
        raise UserError(f"the template {path} is empty: write what the model is asked for, or leave the option out")
    return template


def clip_message(clip: ClipView, template: Template) -> Message:
    """The question about a clip, then its frames."""
    record, (_, height, width, _) = clip.record, clip.frames.shape
    facts = {
        "num_frames": len(clip.frames), "times_s": clip.times_s, "duration_s": record.duration_s, "fps": record.fps,
        "width": width, "height": height, "captions": record.captions,
    }  # fmt: skip
    images = [{"type": "image_url", "image_url": {"url": _jpeg(frame)}} for frame in clip.frames]
    return {"role": "user", "content": [{"type": "text", "text": template(facts)}, *images]}


def prompt_messages(prompt: str, template: Template) -> list[Message]:
    """The instruction, then the prompt."""
    return [{"role": "system", "content": template({"prompt": prompt})}, {"role": "user", "content": prompt}]


def full_sentences(text: str) -> str:
    """A text that was cut off, up to its last full sentence; empty where there is none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def _jpeg(frame: UInt8[np.ndarray, "Y X 3"]) -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
