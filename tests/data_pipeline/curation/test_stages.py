"""Each stage on its own: cuts where they are, borders where they are, copies and only copies."""

import dataclasses
from itertools import combinations, pairwise

import numpy as np
import pytest

from data_pipeline.curation.alignment import STILL_LEVELS, aligned_similarities, normalised, track
from data_pipeline.curation.balance import balance
from data_pipeline.curation.borders import picture_area
from data_pipeline.curation.candidate import Candidate, Reason
from data_pipeline.curation.config import BalanceConfig, CurationConfig, DuplicateConfig, FilterConfig, ShotConfig
from data_pipeline.curation.duplicates import drop_duplicates, duplicate_clusters
from data_pipeline.curation.examine import examine
from data_pipeline.curation.filters import apply_limits, windows
from data_pipeline.curation.lettering import share_of_text
from data_pipeline.curation.observe import Observation, observe
from data_pipeline.curation.shots import find_dissolves, split_shots
from data_pipeline.curation.signature import perceptual_hashes, signature
from data_pipeline.curation.variants import captioned
from data_pipeline.frames import Frame
from tests.data_pipeline.curation.conftest import FPS, scene


def seen(video: np.ndarray) -> Observation:
    frames = (Frame(n / FPS, False, {}, f.shape[:2], "", lambda f=f: f) for n, f in enumerate(video))
    return observe(frames, FPS, ShotConfig())


def shots(*parts: np.ndarray) -> list[tuple[int, int]]:
    return split_shots(seen(np.concatenate(parts)), ShotConfig())


def test_cuts_fades_and_cross_fades_are_found_and_flashes_are_none():
    a, b = scene(1), scene(2)
    assert shots(a, b) == [(0, 30), (30, 60)]
    ramp = np.linspace(1, 0, 6)[:, None, None, None]
    black = np.zeros_like(a[:4])
    (first, second) = shots(
        a[:-6], (a[-6:] * ramp).astype(np.uint8), black, (b[:6] * ramp[::-1]).astype(np.uint8), b[6:]
    )
    assert first[0] == 0 and 28 <= first[1] <= 30 and 34 <= second[0] <= 36 and second[1] == 64
    weight = (np.arange(10)[:, None, None, None] + 1) / 11
    a, b = scene(1, pace=0.25), scene(2, pace=0.25)
    (first, second) = shots(a[:-10], (a[-10:] * (1 - weight) + b[:10] * weight).astype(np.uint8), b[10:])
    assert first[0] == 0 and 15 <= first[1] <= 23 and 27 <= second[0] <= 35 and second[1] == 50
    flash = a.copy()
    flash[14:16] = 255 - (255 - flash[14:16]) // 6
    assert shots(flash) == [(0, 30)]
    brighter = (a * np.linspace(0.5, 1, 30)[:, None, None, None]).astype(np.uint8)
    assert shots(brighter) == [(0, 30)]  # light that changes is no cross-fade


@pytest.mark.parametrize("fps, flash_s", [(1.0, 0.25), (FPS, 0.0)])
def test_where_a_frame_lasts_longer_than_a_flash_a_cut_is_a_cut(fps, flash_s):
    look = dataclasses.replace(seen(np.concatenate([scene(1), scene(2)])), fps=fps)
    assert (0, 30) in split_shots(look, ShotConfig(flash_s=flash_s, dissolve_s=(0.5,)))


def test_thumbnails_in_blocks_give_the_cross_fades_of_all_at_once(monkeypatch):
    a, b = (scene(number, pace=0.25).reshape(30, -1)[:, :1728] for number in (1, 2))
    weight = (np.arange(10)[:, None] + 1) / 11
    faded = np.concatenate([a[:-10], (a[-10:] * (1 - weight) + b[:10] * weight).astype(np.uint8), b[10:]])
    whole = find_dissolves(np.tile(faded, (3, 1)), FPS, ShotConfig())
    monkeypatch.setattr("data_pipeline.curation.shots.BLOCK", 7)
    assert find_dissolves(np.tile(faded, (3, 1)), FPS, ShotConfig()) == whole and len(whole) >= 3


def test_a_fault_of_ours_costs_the_source_and_not_the_curation(films, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.curation.examine.split_shots", lambda *_: [][0])
    found = examine(films / "two.mp4", "two.mp4", CurationConfig(), tmp_path / "repaired")
    assert found.rejected and found.rejected.detail == "looking at it fails: IndexError: list index out of range"


def test_bars_are_cut_off_and_dark_pictures_are_left_alone():
    film = scene(3)
    barred = np.pad(film, ((0, 0), (12, 12), (20, 20), (0, 0)))
    top, left, height, width = picture_area(seen(barred).samples, *barred.shape[1:3])
    assert 12 <= top <= 14 and 20 <= left <= 22 and top + height <= 84 and left + width <= 148
    assert height >= 66 and width >= 122
    dusk = (film * np.linspace(0, 1, 72)[None, :, None, None]).astype(np.uint8)  # dark towards the top, without an edge
    wall = film.copy()
    wall[:, :, :56] = 24  # dark, not black
    wall[:, :, 72:] = 28
    aside = film.copy()
    aside[:, :, :40] = 0  # black on one side alone
    small = np.zeros_like(film)
    small[:, 20:44, 56:72] = 200  # an object before black
    for whole in (film, dusk, wall, aside, small):
        assert picture_area(seen(whole).samples, 72, 128) == (0, 0, 72, 128)


def candidate(name: str, video: np.ndarray, **measures: float) -> Candidate:
    look = seen(video)
    height, width = video.shape[1:3]
    crop = picture_area(look.samples, height, width)
    return Candidate(
        name, 0, len(video), FPS, height, width, crop, "video/mp4", {}, True,
        measures={"sharpness": 100.0, "luma": 100.0, "clipped": 0.0, "bits_per_pixel": 1.0, "motion": 0.1, "shake": 0.0,
                  "text": share_of_text([sample.text for sample in look.samples])}
        | measures,
        hashes=perceptual_hashes(look.samples, height, width, crop),
        signature=signature(look, 0, len(video), crop).tobytes(),
        track=track(look, 0, len(video), crop).tobytes(),
    )  # fmt: skip


def test_copies_are_dropped_and_other_films_of_the_same_place_are_not():
    film = scene(1)
    room = np.repeat(scene(2)[:1], 30, axis=0)
    walks = [room.copy(), room.copy()]
    for number in range(30):
        walks[0][number, 20:44, 3 * number : 3 * number + 20] = 240
        walks[1][number, 30:54, 100 - 3 * number : 120 - 3 * number] = 240
    clips = [
        candidate("smaller", film[:, ::2, ::2]),
        candidate("film", film),
        candidate("barred", np.pad(film, ((0, 0), (12, 12), (0, 0), (0, 0)))),
        candidate("left", walks[0]),
        candidate("right", walks[1]),
    ]
    found = {clip.source_id: clip.rejected for clip in drop_duplicates(clips, DuplicateConfig())}
    assert [name for name, why in found.items() if why is None] == ["film", "left", "right"]
    assert found["smaller"] and found["smaller"].reason == Reason.DUPLICATE and found["smaller"].detail == "of film"
    copies = {clip.source_id: clip.copies for clip in drop_duplicates(clips[::-1], DuplicateConfig())}
    assert copies.pop("film") == ("barred", "smaller") and not any(copies.values())  # in the order of the clips


def test_a_copy_without_its_ends_or_with_faded_ones_is_dropped():
    film, other = scene(1, num_frames=60), scene(2, num_frames=60)
    faded = (film * np.minimum(1, np.minimum(np.arange(60), 59 - np.arange(60)) / 10)[:, None, None, None]).astype("u1")
    videos = {"a film": film, "end": film[30:], "faded": faded, "other": other[30:]}
    clips = [candidate(name, video) for name, video in videos.items()]
    kept = [clip.source_id for clip in drop_duplicates(clips, DuplicateConfig()) if clip.rejected is None]
    assert kept == ["a film", "other"]
    kept = [c.source_id for c in drop_duplicates(clips, DuplicateConfig(min_overlap=1.0)) if c.rejected is None]
    assert "end" not in kept  # all of the shorter one lies in the longer one
    kept = [c.source_id for c in drop_duplicates(clips, DuplicateConfig(min_overlap_s=4.0)) if c.rejected is None]
    assert "end" in kept


def plain_similarity(a: np.ndarray, b: np.ndarray, least_share: float, least: int) -> float:
    """One shift after the other, each overlap on its own."""
    overlap = max(least, round(least_share * min(len(a), len(b))))
    best = -1.0
    for shift in range(overlap - len(b), len(a) - overlap + 1):
        parts = a[max(shift, 0) : shift + len(b)], b[max(-shift, 0) : len(a) - shift]
        means = [part.mean(axis=0) for part in parts]
        moving = [part - mean for part, mean in zip(parts, means, strict=True)]
        together, *energies = (
            float((x * y).mean()) + STILL_LEVELS**2
            for x, y in ((moving[0], moving[1]), (moving[0],) * 2, (moving[1],) * 2)
        )
        picture = float(means[0] @ means[1]) / max(float(np.linalg.norm(means[0]) * np.linalg.norm(means[1])), 1e-6)
        best = max(best, 0.5 * picture + 0.5 * together / float(np.sqrt(energies[0] * energies[1])))
    return best


def mixed_tracks() -> list[bytes]:
    """Films of one place, of several lengths; of some a part, a faded copy, a noisy one; a still, a flat one, a cut."""
    rng = np.random.default_rng(0)
    place = rng.integers(60, 180, 48).astype(float)
    films = []
    for length in (5, 8, 13, 20, 20, 31, 40):
        film = np.repeat(place[None], length, axis=0)
        for number, spot in enumerate(np.cumsum(rng.integers(-1, 2, length)) + rng.integers(48)):
            film[number, spot % 48] = 240
        films.append(film)
    long = films[-1]
    films += [long[12:], long[:20], long[30:], long + rng.normal(0, 4, long.shape)]
    films += [
        long * np.minimum(1, np.arange(40) / 10)[:, None],
        np.repeat(place[None], 12, axis=0),
        np.full((9, 48), 80.0),
    ]
    films += [np.concatenate([films[3], 255 - films[4]]), 255 - films[4], long[:1]]
    return [np.clip(film.round(), 0, 255).astype(np.uint8).tobytes() for film in films]


@pytest.mark.parametrize(("share", "seconds"), [(0.6, 1.0), (1.0, 1.0), (0.3, 3.0)])
def test_pairs_are_those_of_one_shift_after_the_other(share: float, seconds: float):
    tracks, least = mixed_tracks(), round(4 * seconds)
    films = [normalised(track) for track in tracks]
    pairs = list(combinations(range(len(films)), 2))
    plain = {(a, b): plain_similarity(films[a], films[b], share, least) for a, b in pairs}
    for a in range(len(films) - 1):
        together = aligned_similarities(films[a], films[a + 1 :], share, least)
        np.testing.assert_allclose(together, [plain[a, b] for b in range(a + 1, len(films))], atol=1e-4)
    base = candidate("x", scene(1))
    orthogonal = np.eye(len(tracks), dtype=np.float16)  # as wholes they are all different
    clips = [
        dataclasses.replace(base, source_id=f"{n}", track=one, signature=orthogonal[n].tobytes(), hashes=(7,))
        for n, one in enumerate(tracks)
    ]
    cfg = DuplicateConfig(min_similarity=0.9, min_overlap=share, min_overlap_s=seconds)
    joined = [pair for pair in pairs if plain[pair] >= cfg.min_similarity]
    expected = list(range(len(clips)))
    for a, b in joined:
        expected = [expected[a] if root == expected[b] else root for root in expected]
    steps = []
    found = duplicate_clusters(clips, cfg, lambda done, total: steps.append((done, total)))
    assert [[x == y for y in found] for x in found] == [[x == y for y in expected] for x in expected]
    assert 1 < len(set(found)) < len(clips)
    assert steps == sorted(steps) and steps[-1] == (len(pairs), len(pairs))


def test_subtitles_are_text_and_textures_are_not():
    film = scene(5, height=144, width=256)
    written = captioned(film)[0]
    limits = FilterConfig(min_short_side=64, min_fps=10)
    assert apply_limits(candidate("film", film), limits).rejected is None
    rejected = apply_limits(candidate("written", written), limits).rejected
    assert rejected and rejected.reason == Reason.TEXT
    moving = np.stack([np.roll(frame, 40 * n, axis=0) for n, frame in enumerate(written)])  # nothing stays
    assert share_of_text([sample.text for sample in seen(moving).samples]) == 0


def test_quotas_thin_the_crowded_cluster_and_do_not_depend_on_who_else_is_there():
    rng = np.random.default_rng(0)
    centres = np.eye(3, 16)
    vectors = np.concatenate(
        [np.repeat(centres[:1], 20, 0), np.repeat(centres[1:2], 4, 0), np.repeat(centres[2:], 3, 0)]
    )
    vectors = (vectors + 0.05 * rng.normal(size=vectors.shape)).astype(np.float16)
    base = candidate("x", scene(1))
    clips = [dataclasses.replace(base, source_id=f"c{n}", embedding=v.tobytes()) for n, v in enumerate(vectors)]
    kept = [clip.rejected is None for clip in balance(clips, BalanceConfig(num_clusters=3, quota=1.0))]
    assert sum(kept[:20]) == 9 and all(kept[20:])
    fewer = balance(clips[:20] + clips[24:], BalanceConfig(num_clusters=2, quota=0.5))
    assert {c.source_id for c in fewer[:20] if not c.rejected} <= {
        c.source_id for c, k in zip(clips, kept, strict=True) if k
    }


@pytest.mark.parametrize(
    ("measure", "value", "reason"),
    [("motion", 0.0, Reason.STATIC), ("shake", 0.1, Reason.SHAKING), ("sharpness", float("nan"), Reason.BLURRED)],
)
def test_limits_give_typed_reasons_with_both_numbers(measure, value, reason):
    limits = FilterConfig(min_short_side=64, min_fps=10)
    clip = candidate("x", scene(1))
    assert apply_limits(clip, limits).rejected is None
    rejected = apply_limits(dataclasses.replace(clip, measures=clip.measures | {measure: value}), limits).rejected
    assert rejected and rejected.reason == reason and f"{value:.3g}" in rejected.detail


def test_windows_cover_a_shot_in_nearly_equal_pieces():
    pieces = list(windows(5, 105, 10.0, FilterConfig(min_duration_s=1, max_duration_s=3)))
    assert pieces[0][0] == 5 and pieces[-1][1] == 105 and all(a[1] == b[0] for a, b in pairwise(pieces))
    assert {end - start for start, end in pieces} == {25}
