import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from sora_jax.commands.main import main
from sora_jax.commands.train import load_config
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.sharding import spread_length
from sora_jax.models.autoencoder import AutoencoderConfig, Stage
from sora_jax.parallel import make_mesh, path_of
from sora_jax.planning.autoencoder_subject import autoencoder_subject
from sora_jax.planning.compile import compile_step
from sora_jax.planning.many import markdown
from sora_jax.planning.memory import bytes_on_device
from sora_jax.planning.report import make_report, tables
from sora_jax.planning.sampling import Clip, sample_subject, sampling_arguments, sampling_mesh
from sora_jax.planning.topologies import parse_topology

CONFIG = str(Path(__file__).with_name("small_config.py"))
AUTOENCODER = str(Path(__file__).with_name("small_autoencoder.py"))
SAMPLE = ["plan", "--sample", "--config", CONFIG, "--vocab_size", "64", "--config.model.attention_kernel=blockwise"]


@functools.cache
def subject(steps: int = 3, guidance: float = 6.0, rows: int = 1):
    clip, mesh = Clip(64, 60, 1.0, 8.0, rows), {"fsdp": rows, "context": 8 // rows}
    config = load_config(CONFIG, []).to_dict()
    return sample_subject(config, AutoencoderConfig(), clip, SamplingConfig(steps, guidance), 64, mesh)


def test_a_minute_of_1080p_is_three_million_tokens_on_the_next_legal_canvas():
    clip = Clip(1920, 1080, 60.0, 24.0)
    canvas = clip.canvas(AutoencoderConfig(), (1, 2, 2))
    assert canvas == (1441, 1088, 1920)
    frames, height, width, _ = AutoencoderConfig().latent_shape(*canvas)
    tokens = frames * (height // 2) * (width // 2)
    assert tokens == 361 * 68 * 120
    assert spread_length(tokens, {"fsdp": 512}) == tokens
    row = spread_length(tokens, {"context": 256})
    assert row % (256 * 128) == 0 and 0 <= row - tokens < 256 * 128


def test_rows_come_before_parts_of_a_row():
    assert sampling_mesh(512, 2) == {"fsdp": 2, "context": 256}
    assert sampling_mesh(512, 3) == {"fsdp": 1, "context": 512}, "three rows do not divide 512 devices"


def test_sampling_costs_forward_passes_in_proportion_to_steps_and_guidance():
    one, two, plain = subject(3), subject(6), subject(3, 1.0)
    np.testing.assert_allclose(two.useful_flops, 2 * one.useful_flops)
    assert 1.9 * plain.useful_flops < one.useful_flops < 2 * plain.useful_flops, "the empty caption is shorter"
    np.testing.assert_allclose(subject(3, 6.0, 2).useful_flops, 2 * one.useful_flops)


def test_parameters_and_tokens_lie_over_all_devices():
    mesh, whole = make_mesh({"fsdp": 2, "context": 4}), make_mesh({"data": 2}, jax.devices()[:2])
    (params, _, rows), (copied, _, held) = (sampling_arguments(subject(rows=2), m) for m in (mesh, whole))
    leaves = jax.tree_util.tree_leaves_with_path(params["blocks"])
    matrices = [x for keys, x in leaves if path_of(keys).endswith("kernel")]
    assert all(x.sharding.num_devices == 8 and not x.sharding.is_fully_replicated for x in matrices)
    assert bytes_on_device(params) < 0.3 * bytes_on_device(copied)
    assert bytes_on_device(rows["noise"]) * 4 == bytes_on_device(held["noise"])


def test_a_clip_is_planned_with_its_decoding(capsys):
    words = ["--topology", "cpu:8", "--size", "64x60", "--seconds", "1", "--fps", "8", "--steps", "3"]
    code = main([*SAMPLE, *words, "--autoencoder", AUTOENCODER, "--tile", "32"])
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert code == 0 and report["fits"]
    assert report["canvas"] == "9 frames of 64x64" and report["mesh"] == {"context": 8}
    assert report["bytes"]["arguments"] - report["bytes"]["stored"] in range(65), "but for the numbers of the guidance"
    exchanged = {name: row["runs"] for name, row in report["collectives"].items() if "context" in name.split()[0]}
    assert exchanged and any(runs >= 3 * 2 for runs in exchanged.values()), "in each of 2 blocks of each of 3 steps"
    np.testing.assert_allclose(report["seconds_per_solver_step"] * 3, report["seconds_per_sample"], rtol=1e-2)
    decoding = report["decoding"]
    assert decoding["fits"] and (decoding["tiles"], decoding["chunks"]) == (9, 1)
    assert f"1 x {report['row_tokens']}: 1 s of 64x60" in markdown([{**report, "config": "configs/small.py"}])


BAD = {
    "size": (["--size", "large"], "--size is 'large'"),
    "seconds": (["--seconds", "-1"], "all of these must be above 0"),
    "solver": (["--solver", "rk9"], "solver is 'rk9'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, capsys):
    words, message = BAD[case]
    assert main([*SAMPLE, "--topology", "cpu:8", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


def test_an_autoencoders_largest_crop_is_planned_over_its_own_steps():
    config = load_config(AUTOENCODER, []).to_dict()
    one, mesh = autoencoder_subject(config), make_mesh({"fsdp": 2}, jax.devices()[:2])
    assert one.batch["video"].shape == (2, 5, 16, 16, 3), "not the image"
    assert one.task.frozen["lpips"]["features.0.kernel"].shape == (3, 3, 3, 64), "without LPIPS's files"
    one = autoencoder_subject({**config, "loss": {}})
    budget = float(one.tokens * one.train.num_steps)
    report = make_report(one, parse_topology("cpu:2"), mesh, compile_step(one, mesh), budget)
    assert report["fits"] and report["pixels_per_step"] == 2 * 5 * 16 * 16
    np.testing.assert_allclose(
        report["budget"]["days"] * 86_400, one.train.num_steps * report["roofline"]["step_s"], atol=900
    )
    assert tables(report)
    assert Stage(2, 2, 8, 1) in one.model.stages
