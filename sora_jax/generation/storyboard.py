"""A storyboard: what one clip shows from when on, as a YAML list of shots.

    - {at: 0, prompt: a red circle moves right, image: first.png}   # a key frame: the clip's frame at that time
    - {at: 2.5, prompt: a blue square moves down}                   # goes on from what was before
    - {at: 5, prompt: a green triangle, cut: true}                  # a hard cut: nothing goes on

`at` is in seconds; a file's path is relative to the storyboard's folder. Raises UserError with the file's name, the
line and the field of what is wrong.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError

FIELDS: dict[str, tuple[type, ...]] = {"at": (int, float), "prompt": (str,), "image": (str,), "cut": (bool,)}
NEEDED = ("at", "prompt")


@dataclass(frozen=True)
class Scene:
    """One shot of a storyboard, from `at_s` seconds on. `image`: a key frame's file, or none. `expanded_prompt`: what
    is sampled in the prompt's place, if there is one."""

    at_s: float
    prompt: str
    image: str = ""
    cut: bool = False
    expanded_prompt: str = ""

    @property
    def text(self) -> str:
        """What is sampled."""
        return self.expanded_prompt or self.prompt

    def described(self) -> dict[str, Any]:
        """As a manifest tells it."""
        return {name: value for name, value in asdict(self).items() if value or name != "expanded_prompt"}


def read_storyboard(path: Path) -> list[Scene]:
    """The shots in order of time; the first begins at 0."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.SequenceNode) or not root.value:
            raise UserError(f"{path} must be a list of shots, such as '- {{at: 0, prompt: a red ball}}'")
        scenes: list[Scene] = []
        for node in root.value:
            scenes.append(_scene(loader, node, path, scenes))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the storyboard {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return scenes


def _scene(loader: Any, node: Any, path: Path, before: list[Scene]) -> Scene:
    where = f"{path}:{node.start_mark.line + 1}: shot {len(before) + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{where} must have fields, such as {{at: 0, prompt: a red ball}}")
    found: dict[str, Any] = {}
    for key, value_node in node.value:
        name, line = str(key.value), f"{path}:{key.start_mark.line + 1}: shot {len(before) + 1}"
        value = loader.construct_object(value_node, deep=True)
        if name not in FIELDS:
            raise UserError(f"{line} has a field '{name}', which is none of {', '.join(FIELDS)}")
        if name in found:
            raise UserError(f"{line} has '{name}' twice: leave one out")
        if not isinstance(value, FIELDS[name]) or (isinstance(value, bool) and name != "cut"):
            kind = {"at": "a time in seconds", "cut": "true or false"}.get(name, "text; put it in quotes")
            raise UserError(f"{line}: {name} is {value!r}, but must be {kind}")
        found[name] = value
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise UserError(f"{where} has no {' and no '.join(missing)}")
    image = str(path.parent / found["image"]) if found.get("image") else ""
    scene = Scene(float(found["at"]), found["prompt"], image, found.get("cut", False))
    _check_time(scene, before, where)
    return scene


def _check_time(scene: Scene, before: list[Scene], where: str) -> None:
    if not math.isfinite(scene.at_s) or (not before and scene.at_s != 0):
        raise UserError(f"{where} begins at {scene.at_s:g} s, but the first must begin at 0")
    if before and scene.at_s <= before[-1].at_s:
        raise UserError(f"{where} begins at {scene.at_s:g} s, but the one before it at {before[-1].at_s:g} s")
