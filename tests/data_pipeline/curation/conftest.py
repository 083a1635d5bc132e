"""Small films whose cuts, borders and copies are known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.video_io import write_video

FPS = 12.0


def scene(seed: int, num_frames: int = 30, height: int = 72, width: int = 128, pace: float = 1.0) -> np.ndarray:
    """A coarse texture of its own that slides `pace` pixels a frame; a bright block crosses it the other way."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 215, (6, 16, 3), np.uint8))
    wide = np.asarray(coarse.resize((2 * width, height), Image.Resampling.BICUBIC))
    frames = np.stack([wide[:, int(pace * n) :][:, :width] for n in range(num_frames)])
    for number, frame in enumerate(frames):
        frame[10 + 3 * seed % 30 :][:16, width - 20 - int(3 * pace * number) :][:, :16] = (240, 230, 90)
    return frames


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots in one file, one of them also alone and smaller; a letterboxed clip; a still; no video; a sidecar."""
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "two.mp4", np.concatenate([scene(1), scene(2)]), FPS)
    write_video(folder / "copy.mp4", scene(1)[:, ::2, ::2], FPS, crf=28)
    write_video(folder / "wide.mp4", np.pad(scene(3), ((0, 0), (12, 12), (0, 0), (0, 0))), FPS)
    write_video(folder / "still.mp4", np.repeat(scene(4)[:1], 30, axis=0), FPS)
    (folder / "broken.mp4").write_text("this is no film")
    (folder / "metadata.csv").write_text(
        "file_name,text\ntwo.mp4,two textures\nwide.mp4,a wide one\ngone.mp4,a lost one\n"
    )
    return folder
