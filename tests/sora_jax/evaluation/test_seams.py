"""Seams of arrays whose steps are known."""

import json

import numpy as np
import pytest

from data_pipeline.video_io import write_video
from sora_jax.commands.main import main
from sora_jax.evaluation.seams import colour_drift, known_error, measure_seams, steps


def ramp(values: list[int]) -> np.ndarray:
    """One frame of 16x16 for each grey level."""
    levels = np.asarray(values, np.uint8)[:, None, None, None]
    return np.ascontiguousarray(np.broadcast_to(levels, (len(values), 16, 16, 3)))


def test_a_smooth_seam_has_ratio_one_and_a_jump_says_how_large_it_is():
    assert steps(ramp([0, 2, 6, 3])).tolist() == [2, 4, 3]
    smooth, jump = ramp([0, 2, 4, 6, 8, 10]), ramp([0, 2, 4, 24, 26, 28])
    assert measure_seams(smooth, [3]).ratios == (1.0,) and measure_seams(smooth, [3]).beyond == 0
    assert measure_seams(jump, [3]).ratios == (10.0,) and measure_seams(jump, [3]).beyond == 1
    assert measure_seams(jump, [2]).ratios == (1.0,)
    assert measure_seams(jump, []).ratios == ()


def test_the_step_of_a_loop_is_from_its_last_frame_to_its_first():
    assert measure_seams(ramp([0, 2, 4, 4, 2]), [3]).loop_ratio == 1.0
    assert measure_seams(ramp([0, 2, 4, 6, 8]), []).loop_ratio == 4.0


def test_a_still_clip_has_no_jump_for_a_rounding():
    still = ramp([9, 9, 9, 9])
    assert measure_seams(still, [2]).ratios == (0.0,)
    still[2, 0, 0, 0] += 1
    assert measure_seams(still, [2]).ratios[0] < 0.1


def test_both_ends_are_exact_or_off_by_so_much():
    a, b = ramp([1, 2]), ramp([7, 9])
    whole = np.concatenate([a, ramp([4, 5]), b])
    assert known_error(whole, np.concatenate([a, b]), [(0, 2), (4, 6)]) == 0
    whole[5, 3, 3, 1] -= 4
    assert known_error(whole, np.concatenate([a, b]), [(0, 2), (4, 6)]) == 4
    with pytest.raises(ValueError, match="2 known frames and a source of 4"):
        known_error(whole, np.concatenate([a, b]), [(0, 2)])


def test_colours_drift_window_by_window():
    video = ramp([100, 100, 102, 102, 106, 106])
    np.testing.assert_allclose(colour_drift(video, [0, 2, 4, 6]), [2, 6])
    video[2:, :, :, 1:] = 100  # in red alone
    np.testing.assert_allclose(colour_drift(video, [0, 2, 4, 6]), [2 / np.sqrt(3), 6 / np.sqrt(3)])


def test_the_manifests_seams_are_measured(tmp_path, capsys):
    values = {"jump.gif": [0, 8, 16, 96, 104, 112], "loop.gif": [0, 8, 16, 16, 8]}
    windows = {"extend": "forward", "window": 5, "overlap": 2}  # two new frames each
    lines = [
        {"file": "jump.gif", "prompt": "a", "seams": [3], "loops": False, "known_psnr": 30.0, **windows},
        {"file": "loop.gif", "prompt": "b", "seams": [3], "loops": True, "known_psnr": 32.0},
        {"file": "none.gif", "prompt": "c"},
    ]
    for name, greys in values.items():
        write_video(tmp_path / name, ramp(greys), 8.0)
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["evaluate", "--metric", "seams", "--generated", tmp_path, "--out", tmp_path / "seams.json"]
    assert main([str(word) for word in words]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["num_samples"] == 2 and result["autoencoder_psnr_of_known_frames"] == 31.0
    assert result["seam_ratio"] == {"median": 5.0, "largest": 10.0} and result["seams_beyond_every_step"] == 1
    assert result["loop_ratio"] == {"median": 1.0, "largest": 1.0}
    assert result["colour_drift_at_the_end"] == {"median": 104.0, "largest": 104.0}, "grey 112 against 8 on average"
    (tmp_path / "samples.jsonl").write_text(json.dumps(lines[2]) + "\n")
    assert main([str(word) for word in words]) == 2
    assert "its lines name no seams" in capsys.readouterr().err
