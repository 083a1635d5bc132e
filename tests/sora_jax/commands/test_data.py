"""`sora-jax data` from the command line: a world, its shards, the table of outcomes."""

import json

import pytest

from data_pipeline.shards import ShardReader
from sora_jax.commands.main import main


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_synth_build_outcomes(tmp_path, capsys):
    world, shards, table = tmp_path / "world", tmp_path / "shards", tmp_path / "table.md"
    arguments = ["--out", str(world), "--clips", "6", "--seed", "1", "--world", "quickstart", "--workers", "1"]
    assert main(["data", "synth", *arguments]) == 0
    assert last_line(capsys)["clips"] == 6
    assert main(["data", "build", "--videos", str(world), "--out", str(shards), "--workers", "1"]) == 0
    counts = last_line(capsys)
    assert (counts["inputs"], counts["clips"], counts["rejected"], counts["captions"]) == (6, 6, 0, 12)
    assert ShardReader(shards, "clip").num_records() == 6
    assert main(["data", "outcomes", "--data", str(shards), "--out", str(table)]) == 0
    assert last_line(capsys)["kept"] == 6 and table.read_text().count("| kept |") == 6


def test_user_errors_are_one_line_and_exit_two(tmp_path, capsys):
    assert main(["data", "build", "--videos", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]) == 2
    assert "is not a folder" in capsys.readouterr().err.splitlines()[-1]
    assert main(["data", "synth", "--out", str(tmp_path / "w"), "--clips", "1", "--size", "big"]) == 2
    assert "WIDTHxHEIGHT" in capsys.readouterr().err
    assert main(["data", "synth", "--out", str(tmp_path / "w"), "--clips", "1", "--size", "1000000x1000000"]) == 2
    assert "GiB of memory: choose a smaller size" in capsys.readouterr().err


def test_a_rate_that_is_none_says_what_a_rate_is(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["encode", "--autoencoder", "a", "--data", "b", "--out", "c", "--fps", "8,abc"])
    assert "'8,abc' must be a rate, or several with commas, such as 8,16" in capsys.readouterr().err
