"""Short prompts made long before they are sampled, by a trained expander or a language model's server.

A generator that was trained on long captions follows a long prompt better. What was asked for stays the `prompt` of the
options, names the files and stands in the manifest; `expanded_prompt`, beside it, is what was sampled.
"""

import fcntl
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline import caption_server
from data_pipeline.errors import UserError, from_os_error
from sora_jax.generation.manifest import EXPANDED, append_line, read_lines
from sora_jax.generation.options import SampleOptions, changed
from sora_jax.generation.storyboard import Scene
from sora_jax.training.trained_expander import TrainedExpander

MAX_SHOWN = 20
ASKED_AT_ONCE = 64
"""Prompts of a folder; a job that ends early has lost no more answers than these."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expander:
    """Short prompts → long ones; `name` is what a manifest says of it."""

    name: str
    expand: Callable[[Sequence[str]], list[str]]

    @classmethod
    def from_run(cls, run: Path | str, step: int | None = None, tokenizer: Path | str | None = None) -> "Expander":
        """A run of `configs/expander_*.py`; raises UserError as `TrainedExpander.from_run` does."""
        trained = TrainedExpander.from_run(run, step, tokenizer)
        return cls(f"expander {trained.fingerprint[:12]}", trained.expand)

    @classmethod
    def from_server(cls, url: str, model: str, template: Path | str | None = None, **options: Any) -> "Expander":
        """A model of a server that speaks OpenAI's chat completions; `options` are those of `Server`. Raises UserError
        for a bad template, and unless the server answers and has the model."""
        server = caption_server.Server(url, model, **options)
        expand = caption_server.expander(server, template)
        server.check()
        return cls(model, expand)

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """The long prompt of each; each is asked for once, and shown. The empty one means nothing in particular, and
        stays."""
        asked = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
        longer = dict(zip(asked, self.expand(asked), strict=True)) if asked else {}
        for prompt in asked[:MAX_SHOWN]:
            logger.info("'%s' becomes '%s'", prompt, longer[prompt])
        return [longer.get(prompt, prompt) for prompt in prompts]


def expand_options(expander: Expander | None, wanted: Sequence[SampleOptions]) -> list[SampleOptions]:
    """The options with long prompts, where there is an expander and no long prompt yet."""
    asked = [n for n, options in enumerate(wanted) if options.prompt.strip() and not options.expanded_prompt]
    found = list(wanted)
    if expander is not None:
        for n, longer in zip(asked, expander([wanted[n].prompt for n in asked]), strict=True):
            found[n] = changed(wanted[n], expanded_prompt=longer, expander=expander.name)
    return found


def expand_scenes(expander: Expander | None, scenes: Sequence[Scene]) -> list[Scene]:
    """The shots of a storyboard with long prompts, where there is an expander."""
    if expander is None or not scenes:
        return list(scenes)
    longer = expander([scene.prompt for scene in scenes])
    return [replace(scene, expanded_prompt=text) for scene, text in zip(scenes, longer, strict=True)]


def settle_expansions(out: Path, expander: Expander, prompts: Sequence[str]) -> list[str]:
    """Long prompts that all jobs of the folder `out` share, from its `expanded_prompts.jsonl`: a server may say
    something else each time, but a folder is resumed, and split, with one text a prompt.

    One job at a time asks for those that are missing, and writes them as they come; the others wait, and find them.
    Raises UserError where the file holds another expander's.
    """
    path = out / EXPANDED
    try:
        out.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            there = _read_expanded(path, expander.name)
            missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in there]
            for first in range(0, len(missing), ASKED_AT_ONCE):
                asked = missing[first : first + ASKED_AT_ONCE]
                longer = dict(zip(asked, expander(asked), strict=True))
                for short, text in longer.items():
                    append_line(path, {"prompt": short, "expanded_prompt": text, "expander": expander.name})
                there |= longer
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
    return [there[prompt] for prompt in prompts]


def _read_expanded(path: Path, name: str) -> dict[str, str]:
    """Short prompt → long one."""
    lines = [line for line in read_lines(path) if line.keys() >= {"prompt", "expanded_prompt", "expander"}]
    for line in lines:
        if line["expander"] != name:
            other = f"is by {line['expander']}, not {name}"
            raise UserError(f"{path} {other}: choose another --out, or begin anew with --overwrite")
    return {line["prompt"]: line["expanded_prompt"] for line in lines}
