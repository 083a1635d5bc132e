"""Synthetic worlds: the ground truth is true to the pixel, the vocabulary is covered, the bytes are reproducible."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.synthetic.captions import captions
from data_pipeline.synthetic.cycles import CYCLES, PERIODS
from data_pipeline.synthetic.generate import WorldConfig, generate, ground_truth
from data_pipeline.synthetic.motion import simulate
from data_pipeline.synthetic.palette import COLOURS, DIRECTIONS, SHAPES
from data_pipeline.synthetic.render import render
from data_pipeline.synthetic.scene import Background, Body, Camera, Scene
from data_pipeline.synthetic.shapes import DISTANCES, EXTENTS
from data_pipeline.synthetic.worlds import WORLDS, draw_scene
from data_pipeline.video_io import decode

BLACK = Background("plain", (0.0, 0.0, 0.0), 0.0, np.zeros((0, 2), np.float32), np.zeros(0, np.float32))


def scene_of(shape: str, size_px: float, x: float, y: float) -> Scene:
    body = Body(shape, "white", size_px, "rest", None, 0.0, np.array([[x, y]]))
    return Scene("rich", 64, 64, 1, 8.0, (body,), BLACK, Camera.static(1))


def test_areas_are_those_of_geometry():
    areas = {"circle": np.pi / 4, "square": 1.0, "triangle": 1 / 3**0.5, "diamond": 0.72}
    areas |= {"ring": np.pi * (0.5**2 - 0.24**2), "cross": 2 * 0.34 - 0.34**2}
    for shape, area in areas.items():
        frames, visible = render(scene_of(shape, 24.0, 31.3, 32.7))
        assert frames[0, ..., 0].sum() / COLOURS["white"][0] == pytest.approx(area * 24**2, rel=0.03)
        assert visible[0, 0] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_origin_is_the_centroid_and_extents_are_exact(shape):
    grid = np.linspace(-0.8, 0.8, 801, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    inside = DISTANCES[shape](x, y) < 0
    assert abs(x[inside].mean()) < 0.005 and abs(y[inside].mean()) < 0.005
    found = (-x[inside].min(), x[inside].max(), -y[inside].min(), y[inside].max())
    assert all(f <= e + 0.003 for f, e in zip(found, EXTENTS[shape], strict=True))
    assert max(abs(f - e) for f, e in zip(found, EXTENTS[shape], strict=True)) < 0.12


@pytest.mark.parametrize("world", ["quickstart", "demo", "cycles"])
def test_tracks_are_where_the_pixels_are(world):
    for index in range(40):
        scene = draw_scene(world, 3, index)
        frames, visible = render(scene)
        ys, xs = np.mgrid[: scene.height, : scene.width] + 0.5
        for body, share in zip(scene.bodies, visible, strict=True):
            near = np.abs(frames.astype(int) - COLOURS[body.colour]).sum(-1) < 60
            for frame in np.flatnonzero((share > 0.97) & near.any((1, 2))):
                centroid = xs[near[frame]].mean(), ys[near[frame]].mean()
                assert np.hypot(*(centroid - scene.screen_track(body)[frame])) < 0.8


def test_quickstart_keeps_its_promises():
    scenes = [draw_scene("quickstart", 0, index) for index in range(960)]
    moving = [scene for scene in scenes if scene.num_frames > 1]
    kinds = Counter((scene.width, scene.height, scene.num_frames) for scene in scenes)
    assert set(kinds) == {(32, 32, 9), (40, 24, 9), (24, 40, 9), (32, 32, 1)}
    assert kinds[32, 32, 9] / 960 == pytest.approx(0.6, abs=0.06) and kinds[32, 32, 1] / 960 == pytest.approx(
        0.1, abs=0.04
    )
    for scene in moving:
        (body,) = scene.bodies
        shift = body.track[-1] - body.track[0]
        unit = np.array(DIRECTIONS[body.direction])
        assert shift @ unit >= 9 and abs(shift[unit == 0]).max() < 1e-9 and 10 <= body.size_px <= 12
        left, right, up, down = np.array(EXTENTS[body.shape]) * body.size_px
        assert (body.track - [left, up]).min() >= 0
        assert ([scene.width, scene.height] - body.track - [right, down]).min() >= 0
        assert max(scene.background.base) < 60


def test_every_combination_is_equally_often():
    for world, count in (("quickstart", 48), ("demo", 96), ("cycles", 48)):
        seen = Counter()
        for index in range(count):
            scene = draw_scene(world, 5, index)
            body = scene.bodies[0]
            does = body.direction or body.motion
            seen[body.colour, body.shape, does if scene.num_frames > 1 else index] += 1
        assert max(seen.values()) == 1


def test_cycles_come_back_after_a_period_at_a_steady_speed_within_the_frame():
    scenes = [draw_scene("cycles", 0, index, frames=40) for index in range(96)]
    periods = Counter()
    for scene in scenes:
        (body,) = scene.bodies
        shifts = {period: np.abs(body.track[period:] - body.track[:-period]).max() for period in PERIODS}
        period = min(shifts, key=lambda period: shifts[period])
        periods[period] += 1
        assert shifts[period] < 1e-9
        left, right, up, down = np.array(EXTENTS[body.shape]) * body.size_px
        assert (body.track - [left, up]).min() >= 0
        assert ([scene.width, scene.height] - body.track - [right, down]).min() >= 0
        paces = np.linalg.norm(np.diff(body.track, axis=0), axis=-1) * scene.fps
        assert np.quantile(paces, 0.6) == pytest.approx(body.speed_px_per_s, rel=0.03)
        assert CYCLES[body.motion] in captions(scene, np.random.default_rng(0))[1][0]
        x, y = (body.track - body.track.mean(0)).T
        turning = float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
        turn = "clockwise" if turning > 1 else "anticlockwise" if turning < -1 else None
        assert turn == (body.motion if body.motion.endswith("clockwise") else None)
    assert min(periods.values()) > 30 and {scene.bodies[0].motion for scene in scenes} == set(CYCLES)


def test_rich_world_has_everything():
    scenes = [draw_scene("rich", 1, index) for index in range(150)]
    assert {scene.physics for scene in scenes} == {"rest", "straight", "bounce", "fall", "collide"}
    assert {scene.camera.kind for scene in scenes} == {"static", "pan", "zoom", "orbit"}
    assert {body.shape for scene in scenes for body in scene.bodies} == set(SHAPES)
    assert {body.colour for scene in scenes for body in scene.bodies} == set(COLOURS)
    assert {scene.num_frames for scene in scenes} >= {1, 65}
    assert any(scene.occluder for scene in scenes) and max(len(scene.bodies) for scene in scenes) == 3
    assert {np.sign(scene.width - scene.height) for scene in scenes} == {-1, 0, 1}
    for scene in scenes[:15]:
        assert render(scene)[0].shape == (scene.num_frames, scene.height, scene.width, 3)


@pytest.mark.parametrize("kind", ["pan", "zoom", "orbit"])
def test_a_moving_camera_moves_the_picture_as_the_truth_says(kind):
    scenes = (draw_scene("rich", 2, index, size=(96, 96), frames=9) for index in range(400))
    scene = next(
        s for s in scenes if s.camera.kind == kind and s.physics == "straight" and not s.occluder and len(s.bodies) == 1
    )
    frames, visible = render(scene)
    body = scene.bodies[0]
    ys, xs = np.mgrid[:96, :96] + 0.5
    near = np.abs(frames.astype(int) - COLOURS[body.colour]).sum(-1) < 60
    checked = 0
    for frame in np.flatnonzero(visible[0] > 0.99):
        centroid = xs[near[frame]].mean(), ys[near[frame]].mean()
        assert np.hypot(*(centroid - scene.screen_track(body)[frame])) < 1.0
        checked += 1
    assert checked >= 3


def test_collisions_keep_momentum_and_energy():
    positions, velocities = np.array([[20.0, 50.0], [80.0, 53.0]]), np.array([[30.0, 0.0], [-20.0, 0.0]])
    track = simulate(positions, velocities, np.full((2, 4), 6.0), (200.0, 200.0), 30.0, 60, collide=True)
    steps = np.diff(track, axis=0) * 30
    np.testing.assert_allclose(steps[-1].sum(0), velocities.sum(0), atol=1e-6)
    assert (steps[-1] ** 2).sum() == pytest.approx((velocities**2).sum(), rel=1e-6)
    assert np.hypot(*(track[:, 0] - track[:, 1]).T).min() > 11


@pytest.mark.parametrize("world", ["quickstart", "demo"])
def test_occluders_hide_what_passes_behind_and_captions_say_so(world):
    scenes = [draw_scene(world, 4, index) for index in range(120)]
    behind = [scene for scene in scenes if scene.occluder is not None]
    assert 5 <= len(behind) <= 30
    for scene in behind:
        visible = render(scene)[1][0]
        assert visible[0] > 0.9 and visible[-1] > 0.9 and visible.min() < 0.65
        assert "grey bar" in captions(scene, np.random.default_rng(0))[1][0]


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_bytes_do_not_depend_on_workers_and_truth_lies_beside(tmp_path, world):
    config = WorldConfig(world, 20, seed=9)
    generate(tmp_path / "one", config, workers=1)
    generate(tmp_path / "two", config, workers=2)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    lines = [json.loads(line) for line in (tmp_path / "one" / "captions.jsonl").read_text().splitlines()]
    assert len({line["path"] for line in lines}) == 20 and len(lines) == 40
    for line in lines:
        truth = json.loads((tmp_path / "one" / line["path"]).with_suffix(".json").read_text())
        frames, fps = decode(tmp_path / "one" / line["path"])
        assert frames.shape == (truth["num_frames"], truth["height"], truth["width"], 3)
        assert truth["num_frames"] == 1 or fps == pytest.approx(truth["fps"], rel=1e-3)
        body = truth["objects"][0]
        assert body["colour"] in line["caption"].lower() and body["shape"] in line["caption"]
        assert all(len(item["track"]) == truth["num_frames"] for item in truth["objects"])
        assert line["path"].endswith(".png") == (truth["num_frames"] == 1)


def test_colours_survive_the_codec(tmp_path: Path):
    generate(tmp_path, WorldConfig("quickstart", 24, seed=2))
    for index in range(24):
        scene = draw_scene("quickstart", 2, index)
        path = next((tmp_path / "clips").glob(f"{index:06d}.[mp]*[4g]"))
        error = decode(path)[0].astype(float) - render(scene)[0]
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 38 if scene.num_frames > 1 else not error.any()


def test_a_finished_world_is_left_alone_and_an_unfinished_one_is_redone(tmp_path):
    config = WorldConfig("quickstart", 3)
    generate(tmp_path / "a", config)
    clip = tmp_path / "a" / "clips" / "000001.mp4"
    whole, stamp = clip.read_bytes(), clip.stat().st_mtime_ns
    generate(tmp_path / "a", config)
    assert clip.stat().st_mtime_ns == stamp
    (tmp_path / "a" / "captions.jsonl").unlink()
    clip.write_bytes(b"half")
    generate(tmp_path / "a", config)
    assert clip.read_bytes() == whole
    with pytest.raises(UserError, match="another world"):
        generate(tmp_path / "a", WorldConfig("quickstart", 4))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        generate(tmp_path / "b", config)


def test_sizes_and_frames_can_be_chosen_and_nonsense_is_refused(tmp_path):
    scene = draw_scene("rich", 0, 3, size=(64, 48), frames=13)
    assert (scene.width, scene.height, scene.num_frames) == (64, 48, 13)
    truth = ground_truth(scene, render(scene)[1])
    assert json.loads(json.dumps(truth)) == truth
    with pytest.raises(UserError, match="choose one of quickstart, demo, rich"):
        draw_scene("moon", 0, 0)
    with pytest.raises(UserError, match="at least 24 pixels"):
        draw_scene("demo", 0, 0, size=(8, 8))
    with pytest.raises(UserError, match="at least 1 clip"):
        generate(tmp_path, WorldConfig(clips=0))
