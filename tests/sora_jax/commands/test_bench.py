import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.shards import Index
from sora_jax.commands.bench_packing import latent_index, synthetic_index
from sora_jax.commands.main import main


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
    command = f"bench loader --data {tmp_path / 'data'} --config configs/autoencoder_droid_tiny.py --steps 1"
    assert main([*command.split(), "--num_workers", "0", "--config.train.batch_rows=1"]) == 0
    assert last_line(capsys)["frames_per_s"] > 0
    assert main(["bench", "loader", "--data", str(tmp_path / "data"), "--config", "configs/dit_quickstart.py"]) == 2
    assert "holds clip records, but configs/dit_quickstart.py trains the diffusion" in capsys.readouterr().err
