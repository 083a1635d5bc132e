import json
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.shards import Index
from sora_jax.commands.bench_packing import latent_index, synthetic_index
from sora_jax.commands.main import main
from sora_jax.commands.train import load_config
from sora_jax.models.autoencoder import AutoencoderConfig, Stage, VideoAutoencoder
from sora_jax.models.codec import Codec
from sora_jax.models.dit import DitConfig, forward_flops
from sora_jax.models.layers import initialise
from sora_jax.models.text_encoder import TextEncoderConfig


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_packing_of_synthetic_lengths_reports_full_balanced_rows(capsys) -> None:
    command = "bench packing --synthetic_lengths 4000 --row_tokens 4096,16384 --batch_rows 8 --window_steps 16"
    assert main(command.split()) == 0
    result = last_line(capsys)
    assert result["clips"] == 4000
    kinds = [(row["row_tokens"], row["durations"]) for row in result["rows"]]
    assert kinds == [(4096, "full"), (4096, "drawn"), (16384, "full"), (16384, "drawn")]
    drawn = result["rows"][3]
    assert drawn["padding"] < 0.02 and drawn["left_out"] + drawn["cut_to_fit"] <= 0.01 and drawn["imbalance"] < 1.1


def test_a_bad_capacity_is_one_line_and_exit_code_2(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "packing", "--synthetic_lengths", "9", "--row_tokens", "many"])
    assert "must be whole numbers" in capsys.readouterr().err
    assert main(["bench", "packing", "--data", "absent"]) == 2


def test_a_clip_index_becomes_latents_of_the_short_side_and_is_never_enlarged() -> None:
    clips = Index(**{**vars(synthetic_index(3, 0)), "frames": np.int32([1, 88, 65]),
                     "height": np.int32([180, 320, 100]), "width": np.int32([320, 180, 100])})  # fmt: skip
    latents = latent_index(clips, short_side=176, temporal=4, spatial=8, multiple=2)
    assert latents.frames.tolist() == [1, 22, 17]
    assert list(zip(latents.height.tolist(), latents.width.tolist(), strict=True)) == [(22, 38), (38, 22), (12, 12)]


def test_packing_and_loader_of_the_shared_clips(shared_data: Path, tmp_path: Path, capsys) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in sorted((shared_data / "clips" / "droid").glob("*.mp4"))[:6]:
        (videos / path.name).symlink_to(path)
    assert main(["data", "build", "--videos", str(videos), "--out", str(tmp_path / "data"), "--workers", "1"]) == 0
    capsys.readouterr()
    command = f"bench packing --data {tmp_path / 'data'} --short_side 176 --row_tokens 16384 --batch_rows 2 --ranks 2"
    assert main(command.split()) == 0
    result = last_line(capsys)
    assert result["clips"] == 6 and 1_000 < result["mean_tokens"] < 20_000
    command = f"bench loader --data {tmp_path / 'data'} --crop 5x64x64 --batch_rows 2 --steps 2 --num_workers 0"
    assert main(command.split()) == 0
    assert last_line(capsys)["frames_per_s"] > 0
    command = f"bench loader --data {tmp_path / 'data'} --config configs/autoencoder_droid.py --steps 1"
    assert main([*command.split(), "--num_workers", "0", "--config.train.batch_rows=1"]) == 0
    assert last_line(capsys)["frames_per_s"] > 0
    assert main(["bench", "loader", "--data", str(tmp_path / "data"), "--config", "configs/dit_quickstart.py"]) == 2
    assert "holds clip records, but configs/dit_quickstart.py trains the diffusion" in capsys.readouterr().err


GENERATOR = """
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(path="absent", row_tokens=24, row_text=12, row_segments=4, patch_size=(1, 1, 1))
    config.model = dict(width=16, depth=1, num_heads=2, text=dict(width=16, depth=1, num_heads=2))
    config.optim = dict(optimizer="adamw")
    config.train = dict(task="diffusion", batch_rows=8)
    return config
"""


@pytest.fixture
def generator_config(tmp_path: Path) -> str:
    (tmp_path / "generator.py").write_text(GENERATOR)
    return str(tmp_path / "generator.py")


VERBS = ["bench train", "plan --topology cpu:8", "bench loader"]


@pytest.mark.parametrize("verb, task", [*((verb, "captioner") for verb in VERBS), ("bench loader", "expander")])
def test_a_verb_names_the_tasks_that_it_is_for(verb, task, repository, capsys) -> None:
    config = str(repository / "configs" / f"{task}_quickstart.py")
    assert main([*verb.split(), "--config", config]) == 2
    assert f"trains the task '{task}', but this is for" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["data doctor", "bench loader"])
@pytest.mark.parametrize("field", ["mixture=({'path':'a'},)", "stages=({'start':0},{'start':5,'path':'b'})"])
def test_data_of_a_mixture_or_of_stages_is_not_replaced(verb, field, tmp_path, capsys) -> None:
    (tmp_path / "mixed.py").write_text(GENERATOR.replace('path="absent"', f'path="absent", {field}'))
    assert main([*verb.split(), "--config", str(tmp_path / "mixed.py"), "--data", "x"]) == 2
    where = "config.data.mixture" if field[0] == "m" else "config.data.stages[1]"
    assert f"but the run reads the data sets of {where}: leave it out" in capsys.readouterr().err


def test_a_training_step_is_measured_without_data(generator_config, capsys) -> None:
    command = ["bench", "train", "--config", generator_config, "--segments", "4", "--steps", "1", "--rounds", "1"]
    assert main([*command, "--vocab_size", "40"]) == 0
    result = last_line(capsys)
    assert result["segment_mix"] == {"segments_per_row": 4, "tokens_per_segment": 6, "text_tokens_per_segment": 3}
    assert result["tokens_per_s"] == pytest.approx(8 * 24 / result["step_s"])
    model = DitConfig(16, TextEncoderConfig(40, 16, 1, 2), width=16, depth=1, num_heads=2)
    expected = 3 * sum(forward_flops(model, [6] * 32, [3] * 32).values())
    assert result["useful_flops_per_step"] == pytest.approx(expected)
    assert result["useful_tflops_per_s"] == pytest.approx(expected / result["step_s"] / 1e12)
    assert np.isfinite(result["loss"]) and result["mfu_of_data_sheet"] is None
    assert result["bytes_per_device"]["temporaries"] > 0
    assert main([*command, "--text_tokens", "9"]) == 2
    assert "4 captions of 9 tokens are 36, but a row holds 12" in capsys.readouterr().err
    assert main(["bench", "train", "--config", "configs/autoencoder_quickstart.py"]) == 2


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_pytorch_step_is_measured_beside_ours(generator_config, capsys) -> None:
    command = ["bench", "train", "--config", generator_config, "--segments", "2", "--steps", "1", "--rounds", "1"]
    assert main([*command, "--pytorch", "eager", "--config.train.microbatches=1"]) == 0
    result = last_line(capsys)
    theirs = result["pytorch"]
    assert theirs["its_time_over_ours"] == pytest.approx(theirs["step_s"] / result["step_s"])
    assert np.isfinite(theirs["loss"]) and not theirs["is_compiled"]


def test_sampling_is_measured_with_a_configs_or_a_runs_parameters(generator_config, tmp_path, capsys) -> None:
    options = ["--segments", "2", "--steps", "2", "--rounds", "1", "--rows_per_batch", "2"]
    command = ["bench", "sample", "--config", generator_config, "--vocab_size", "40", *options]
    assert main([*command, "--guidance", "3", "--solver", "heun"]) == 0
    result = last_line(capsys)
    assert result["seconds_per_sample"] == pytest.approx(result["batch_s"] / 4)
    assert result["seconds_per_solver_step"] == pytest.approx(result["batch_s"] / 2) and result["is_finite"]
    model = DitConfig(16, TextEncoderConfig(40, 16, 1, 2), width=16, depth=1, num_heads=2)
    with_text, without = (sum(forward_flops(model, [12] * 4, [n] * 4).values()) for n in (6, 1))
    assert result["useful_flops_per_step"] == pytest.approx(2 * 2 * (with_text + without))
    assert main([*command[:2], "--run", str(tmp_path / "absent"), *options]) == 2
    assert main([*command, "--solver", "leap"]) == 2


def test_attention_measures_one_row_with_more_and_more_segments(capsys) -> None:
    command = "bench attention --row_tokens 600 --heads 2 --head_width 8 --segments 1,3 --steps 1 --rounds 1"
    assert main(command.split()) == 0
    result = last_line(capsys)
    assert (result["kernel"], result["platform"]) == ("blockwise", "cpu")
    assert [line["sum_of_squares"] for line in result["lines"]] == [600**2, 3 * 200**2]
    assert [round(line["work"], 6) for line in result["lines"]] == [1, 0.333333]
    one = result["lines"][0]
    assert one["flops"] == 4 * 600**2 * 2 * 8 and one["time"] == 1 and one["step_s"] > 0
    np.testing.assert_allclose(one["useful_tflops_per_s"], 3 * one["flops"] / one["step_s"] / 1e12)


def test_attention_takes_the_rows_and_heads_of_a_config(capsys) -> None:
    command = "bench attention --config configs/dit_quickstart.py --segments 2 --steps 1 --rounds 1 --kernel reference"
    assert main(command.split()) == 0
    result = last_line(capsys)
    config = load_config("configs/dit_quickstart.py")
    assert result["row_tokens"] == config.data.row_tokens and result["dtype"] == "float32"
    assert result["heads"] * result["head_width"] == config.model.width


@pytest.mark.parametrize(
    "options, message",
    [
        ("--segments 1,x", "must be whole numbers with commas"),
        ("--row_tokens 8 --segments 16", "16 segments do not fit in a row of 8 tokens"),
        ("--kernel splash", "'splash' is written for tpu, but the mesh is of cpu"),
        ("--kernel flash", "blockwise, reference, splash, triton"),
        ("--rounds 0", "both must be at least 1"),
        ("--config configs/autoencoder_quickstart.py", "which has no rows"),
    ],
)
def test_attention_that_cannot_be_measured_is_one_line(options, message, capsys) -> None:
    assert main(["bench", "attention", *options.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.torch
def test_feature_networks_are_measured_beside_the_same_ones_in_pytorch(capsys) -> None:
    pytest.importorskip("torch")
    command = "bench features --networks inception,i3d,videomae --thin --rounds 1 --pytorch"
    assert main(command.split()) == 0
    result = last_line(capsys)
    assert not result["is_compiled"] and list(result["networks"]) == ["inception", "i3d", "videomae"]
    for measured in result["networks"].values():
        assert measured["largest_difference"] < 1e-4 < 1e-2 < measured["deviation"]
        ratio = measured["ours_samples_per_s"] / measured["pytorch_samples_per_s"]
        np.testing.assert_allclose(measured["its_time_over_ours"], ratio)


def test_a_feature_network_is_measured_alone(capsys) -> None:
    assert main(["bench", "features", "--networks", "videomae", "--thin", "--rounds", "1"]) == 0
    measured = last_line(capsys)["networks"]["videomae"]
    assert measured["shape"] == [1, 16, 56, 56, 3] and measured["ours_samples_per_s"] > 0
    assert main(["bench", "features", "--networks", "vgg"]) == 2
    assert "videomae" in capsys.readouterr().err


@pytest.mark.diffusers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_wans_network_is_measured_beside_the_same_one_in_pytorch(capsys) -> None:
    command = "bench autoencoder --width 8 --size 32 --frames 5 --batch_size 2 --rounds 1 --pytorch"
    assert main(command.split()) == 0
    result = last_line(capsys)
    assert (result["platform"], result["pytorch_device"]) == ("cpu", "cpu") and result["shape"] == [2, 5, 32, 32, 3]
    assert result["encode"]["largest_difference"] < 1e-4 < result["encode"]["deviation"]
    assert result["decode"]["largest_difference"] <= 1 < result["decode"]["deviation"]  # 8-bit levels
    for verb in ("encode", "decode"):
        measured = result[verb]
        ratio = measured["ours_frames_per_s"] / measured["pytorch_frames_per_s"]
        np.testing.assert_allclose(measured["its_time_over_ours"], ratio)


def test_an_export_of_ours_is_measured_alone(tmp_path, capsys) -> None:
    config = AutoencoderConfig(latent_channels=4, stages=(Stage(1, 2, 8, 1), Stage(2, 2, 8, 1)))
    params = initialise(lambda rngs: VideoAutoencoder(config, rngs), jax.random.key(0))
    Codec(config, params, np.zeros(4, np.float32), np.ones(4, np.float32)).save(tmp_path)
    command = ["bench", "autoencoder", "--autoencoder", str(tmp_path), "--size", "16", "--rounds", "1"]
    assert main([*command, "--frames", "5"]) == 0
    result = last_line(capsys)
    assert result["encode"].keys() == result["decode"].keys() == {"ours_frames_per_s"}
    memory = ["--decode_seconds", "0.5", "2", "--decode_size", "24", "16"]
    assert main([*command, *memory]) == 0
    short, long = last_line(capsys)["decoded"]
    assert (short["frames"], long["frames"]) == (13, 49) and 0 < short["peak_mib"] <= long["peak_mib"]
    assert main([*command, "--stream_frames", "17"]) == 0
    (streamed,) = last_line(capsys)["streamed"]
    assert streamed["frames"] == 17 and streamed["peak_mib"] > 50
    assert main([*command, "--chunks", "1", "2", "--lengths", "1", "5", "13"]) == 0
    exact = last_line(capsys)
    assert [(row["chunk_latents"], row["frames"]) for row in exact["lengths"]] == [
        (n, t) for n in (1, 2) for t in (1, 5, 13)
    ]
    assert exact["largest_difference"].keys() == {"1", "2"}
    assert all(0 <= worst < 1e-5 for of in exact["largest_difference"].values() for worst in of.values())
    assert main([*command, "--decode_seconds", "2", "1"]) == 2
    assert "durations must be above 0 and rise" in capsys.readouterr().err
    assert main([*command, "--frames", "5", "--pytorch"]) == 2
    assert "--pytorch is for Wan's network" in capsys.readouterr().err
    assert main([*command, "--frames", "6"]) == 2
    assert "6 frames is not 1 + 4 n" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--width 0", "--width 8 --rounds 0", "--width 8 --batch_size 0"])
def test_an_autoencoder_that_cannot_be_measured_is_one_line(options, capsys) -> None:
    assert main(["bench", "autoencoder", *options.split()]) == 2
    assert "is 0, but must be at least 1" in capsys.readouterr().err


CROPS = """
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(path="absent", crops=((5, 16, 16), (1, 16, 24)), weights=(0.75, 0.25))
    config.model = dict(latent_channels=4, stages=(dict(space=2, time=4, width=8, num_blocks=1),))
    config.optim = dict(optimizer="adamw")
    config.train = dict(task="autoencoder", batch_rows=8)
    return config
"""


def test_mixed_crops_are_measured_against_padding(tmp_path, capsys) -> None:
    (tmp_path / "crops.py").write_text(CROPS)
    command = ["bench", "crops", "--config", str(tmp_path / "crops.py"), "--steps", "1", "--rounds", "1"]
    assert main(command) == 0
    result = last_line(capsys)
    assert [(row["crop"], row["share"]) for row in result["shapes"]] == [([5, 16, 16], 0.75), ([1, 16, 24], 0.25)]
    padded = result["padded"]
    assert padded["crop"] == [5, 16, 24]
    teach = (0.75 * 5 * 16 * 16 + 0.25 * 16 * 24) / (5 * 16 * 24)
    assert padded["share_of_pixels_that_teach"] == pytest.approx(teach)
    assert result["buckets"]["compile_s"] == pytest.approx(sum(row["compile_s"] for row in result["shapes"]))
    assert main([*command, "--config.data.crops=((5,16,16),)", "--config.data.weights=(1.0,)"]) == 2
    assert "has only one crop, (5, 16, 16)" in capsys.readouterr().err
