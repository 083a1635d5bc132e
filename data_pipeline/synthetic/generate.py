"""Renders a world to a folder: media, a ground-truth JSON beside each file, and `captions.jsonl` for `data build`.

DIR/world.json            what was asked for
DIR/clips/000000.mp4      near-lossless H.264, or .png for a single frame
DIR/clips/000000.json     ground truth
DIR/captions.jsonl        {"path", "caption", "caption_source"}, written last: it commits the world
"""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError, from_os_error
from data_pipeline.synthetic.captions import captions
from data_pipeline.synthetic.render import render
from data_pipeline.synthetic.scene import Scene
from data_pipeline.synthetic.simulation import Story, draw_story, render_story, truth_of
from data_pipeline.synthetic.worlds import WORLDS, draw_scene
from data_pipeline.video_io import check_memory, encode_video

GENERATOR_VERSION = 2  # part of world.json: raise it when the same seed gives other bytes
_CHUNK = 16
SIMULATION = "simulation"
WORLD_NAMES = (*WORLDS, SIMULATION)
_QUALITY = {"quickstart": 8, "demo": 8, "rich": 12, "cycles": 8, SIMULATION: 8}


@dataclass(frozen=True)
class WorldConfig:
    """`size` is (width, height); None lets the world choose."""

    world: str = "rich"
    clips: int = 1000
    seed: int = 0
    size: tuple[int, int] | None = None
    frames: int | None = None


def generate(
    directory: Path | str,
    config: WorldConfig,
    workers: int = 1,
    on_progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Writes the world and returns its number of clips; a finished one is left alone, an unfinished one is redone.

    The bytes depend on `config` only, not on `workers`. Calls `on_progress(clips done)`. Raises `UserError` for bad
    options, a full disk, or a folder that holds another world.
    """
    directory = Path(directory)
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}, but must be 0 or more")
    # bad options fail before anything is written
    scene = _draw(config, 0)
    check_memory(scene.num_frames, scene.height, scene.width)
    if config.clips < 1:
        raise UserError(f"a world needs at least 1 clip, got {config.clips}")
    try:
        if _prepare(directory, config):
            lines = chain.from_iterable(_render_all(directory, config, workers, on_progress))
            partial_path = directory / ".captions.jsonl.part"
            partial_path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            partial_path.replace(directory / "captions.jsonl")
    except OSError as error:
        raise from_os_error(error, f"writing the synthetic world into {directory}") from error
    return config.clips


def _prepare(directory: Path, config: WorldConfig) -> bool:
    """Whether there is something to do. Leaves an empty `clips/` and `world.json` behind if so."""
    wanted = json.loads(json.dumps({"generator_version": GENERATOR_VERSION, **asdict(config)}))
    path = directory / "world.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): delete {directory} and render it again") from error
        if found != wanted:
            different = {key: (found.get(key), wanted[key]) for key in wanted if found.get(key) != wanted[key]}
            raise UserError(f"{directory} holds another world, (there, asked for): {different}: choose another folder")
        if (directory / "captions.jsonl").exists():
            return False
    elif directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no synthetic world: choose another folder")
    shutil.rmtree(directory / "clips", ignore_errors=True)
    (directory / "clips").mkdir(parents=True)
    path.write_text(json.dumps(wanted, indent=1) + "\n")
    return True


def _render_all(
    directory: Path, config: WorldConfig, workers: int, on_progress: Callable[[int], None]
) -> Iterator[list[dict]]:
    chunks = [range(start, min(start + _CHUNK, config.clips)) for start in range(0, config.clips, _CHUNK)]
    work = partial(_render_chunk, directory, config)
    if workers <= 1 or len(chunks) == 1:
        for chunk in chunks:
            yield work(chunk)
            on_progress(chunk.stop)
        return
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
        for chunk, lines in zip(chunks, pool.map(work, chunks), strict=True):
            yield lines
            on_progress(chunk.stop)


def _render_chunk(directory: Path, config: WorldConfig, indices: range) -> list[dict[str, str]]:
    return [line for index in indices for line in _render_clip(directory, config, index)]


def _draw(config: WorldConfig, index: int) -> Scene | Story:
    if config.world == SIMULATION:
        return draw_story(config.seed, index, config.size, config.frames)
    return draw_scene(config.world, config.seed, index, config.size, config.frames)


def _render_clip(directory: Path, config: WorldConfig, index: int) -> list[dict[str, str]]:
    scene = _draw(config, index)
    if isinstance(scene, Story):
        frames, texts, truth = render_story(scene), [(scene.caption, "synthetic")], truth_of(scene)
    else:
        frames, visible = render(scene)
        texts = captions(scene, np.random.default_rng([list(WORLDS).index(config.world), config.seed, index, 2]))
        truth = ground_truth(scene, visible)
    ending = "png" if scene.num_frames == 1 else "mp4"
    name = f"clips/{index:06d}.{ending}"
    data = encode_video(frames, scene.fps, ending, _QUALITY[config.world], full_chroma=config.world != "rich")
    (directory / name).write_bytes(data)
    truth |= {"captions": [text for text, _ in texts]}
    (directory / name).with_suffix(".json").write_text(json.dumps(truth) + "\n")
    return [{"path": name, "caption": text, "caption_source": source} for text, source in texts]


def ground_truth(scene: Scene, visible: np.ndarray) -> dict[str, Any]:
    """Everything true of the clip; tracks are centroids in screen pixels, a pair a frame, `visible` shares of area."""
    objects = [
        {
            "shape": body.shape,
            "colour": body.colour,
            "size_px": round(body.size_px, 3),
            "motion": body.motion,
            "direction": body.direction,
            "speed_px_per_s": round(body.speed_px_per_s, 3),
            "track": np.round(scene.screen_track(body), 2).tolist(),
            "visible": np.round(share.astype(float), 3).tolist(),
        }
        for body, share in zip(scene.bodies, visible, strict=True)
    ]
    return {
        "world": scene.world,
        "width": scene.width,
        "height": scene.height,
        "num_frames": scene.num_frames,
        "fps": scene.fps,
        "physics": scene.physics,
        "background": scene.background.kind,
        "camera": {
            "kind": scene.camera.kind,
            "offset_px": np.round(scene.camera.offset.astype(float), 2).tolist(),
            "zoom": np.round(scene.camera.zoom.astype(float), 4).tolist(),
            "angle_rad": np.round(scene.camera.angle.astype(float), 4).tolist(),
        },
        "occluder": None if scene.occluder is None else {"box": [round(v, 2) for v in scene.occluder.box]},
        "objects": objects,
    }
