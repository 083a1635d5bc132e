"""Samples in bulk: each exactly once, the same bytes however often a job was killed and whoever shared it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.video_io import decode
from sora_jax.commands.main import main
from sora_jax.generation.bulk import Bulk, sample_in_bulk
from sora_jax.generation.files import MAX_NAME_BYTES, name_of, read_prompts
from sora_jax.generation.manifest import MERGED, Manifest

PROMPTS = "a red ball\n\na blue cube moves left\n赤い円\n"
FAST = ("--steps", "1", "--guidance", "1", "--frames", "1", "--rows_per_batch", "1", "--devices", "1")
NUM = 17


def command(random_run: Path, folder: Path, *words: object) -> list[str]:
    prompts = folder.parent / "prompts.txt"
    prompts.write_text(PROMPTS)
    options = ("--run", random_run, "--prompts", prompts, "--num", NUM, "--format", "png", *FAST, "--out", folder)
    return ["sample", *map(str, (*options, *words))]


def contents(folder: Path) -> dict[str, str]:
    """Name -> digest of the pictures."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / MERGED).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(random_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted process made."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main(command(random_run, folder)) == 0
    return folder


def test_each_prompt_in_turn_with_a_seed_of_its_own_and_all_that_made_it(whole, generator, capsys):
    found = lines(whole)
    assert [line["number"] for line in found] == [line["seed"] for line in found] == list(range(NUM))
    assert [line["prompt"] for line in found[:4]] == ["a red ball", "a blue cube moves left", "赤い円", "a red ball"]
    assert found[1]["file"] == "a-blue-cube-moves-left-0001.png" and found[2]["file"] == "prompt-0002.png"
    assert {line["file"]: line["sha256"] for line in found} == contents(whole)
    run, codec = generator.run, generator.run.sampler.codec
    assert {**run.identity, "tile": 0}.items() <= found[0].items() and found[0]["autoencoder"] == codec.fingerprint
    assert len(found[0]["checkpoint"]) == 64 and found[0]["ema"] is True and found[0]["size"] == "32x32"
    alone = generator.image("赤い円", seed=2, steps=1, guidance=1.0)
    in_company, _ = decode(whole / found[2]["file"])
    assert np.abs(alone.frames.astype(int) - in_company.astype(int)).max() <= 1


def test_what_is_there_is_left_alone_and_more_are_added(random_run, whole, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(command(random_run, folder, "--num", 5)) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    next(iter(before)).write_bytes(b"cut")  # not as it was written: made again
    assert main(command(random_run, folder)) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (result["samples"], result["made"], result["skipped"], result["missing"]) == (NUM, NUM - 4, 4, 0)
    assert sum(path.stat().st_mtime_ns == stamp for path, stamp in before.items()) == 4
    assert contents(folder) == contents(whole)


def test_another_recipe_is_refused_by_its_differences_and_overwritten_on_demand(random_run, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(command(random_run, folder, "--num", 1)) == 0
    assert main(command(random_run, folder, "--num", 1, "--steps", 2, "--seed", 9)) == 2
    assert "another recipe: seed was 0 and is 9; steps was 1 and is 2" in capsys.readouterr().err
    assert main(command(random_run, folder, "--num", 1, "--steps", 2, "--overwrite")) == 0
    assert [line["steps"] for line in lines(folder)] == [2]


def test_shards_and_devices_cover_each_sample_once_with_the_same_bytes(random_run, whole, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(command(random_run, folder, "--shard", "1/2")) == 0
    part = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert part["missing"] == NUM - part["samples"] > 0 and not (folder / MERGED).exists()
    assert main(command(random_run, folder, "--shard", "0/2", "--devices", 2)) == 0
    rest = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert part["made"] + rest["made"] == NUM and rest["skipped"] == rest["missing"] == 0
    assert contents(folder) == contents(whole) and [line["number"] for line in lines(folder)] == list(range(NUM))


def test_killed_at_any_moment_a_job_resumes_to_the_same_bytes(random_run, whole, tmp_path, repository):
    """A real process, killed (-9) while it makes files; then one that finishes."""
    folder = tmp_path / "out"
    words = [sys.executable, "-m", "sora_jax.commands.main", *command(random_run, folder)]
    process = subprocess.Popen(words, cwd=repository, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(contents(folder)) < 5:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / MERGED).exists()
    assert main(command(random_run, folder)) == 0
    assert contents(folder) == contents(whole) and [line["number"] for line in lines(folder)] == list(range(NUM))


@pytest.mark.hosts
def test_processes_of_one_run_share_a_job(random_run, whole, tmp_path, repository):
    folder = tmp_path / "out"
    words = ["bash", "launch/processes.sh", "2", *command(random_run, folder)]
    environment = {**os.environ, "SORA_PROGRAM": f"{sys.executable} -m sora_jax.commands.main"}
    done = subprocess.run(words, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert 0 < result["made"] < NUM and result["missing"] == 0, "the other process made the rest"
    assert contents(folder) == contents(whole) and [line["number"] for line in lines(folder)] == list(range(NUM))


def test_a_line_that_a_kill_cut_short_costs_its_own_sample_alone(tmp_path):
    manifest = Manifest(tmp_path, {"steps": 1})
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"picture")
        manifest.append({"number": number, "file": f"{number}.png", "bytes": 7})
    (part,) = tmp_path.glob("*.part.jsonl")
    part.write_bytes(part.read_bytes()[:-9])
    again = Manifest(tmp_path, {"steps": 1})
    assert sorted(again.lines()) == [0, 1] and again.merge(3) == 1
    again.append({"number": 2, "file": "2.png", "bytes": 7})
    assert sorted(again.lines()) == [0, 1, 2] and again.merge(3) == 0 and not list(tmp_path.glob("*.part.jsonl"))


def test_names_are_those_that_vbench_looks_for(shared_data):
    folder = shared_data / "prompts/vbench"
    prompts = list(dict.fromkeys(read_prompts(folder / "all_dimension.txt")))
    names = {name_of("vbench", p, 0, index, "mp4") for p in prompts for index in range(5)}
    asked = {entry["prompt_en"] for entry in json.loads((folder / "VBench_full_info.json").read_text())}
    assert names == {f"{prompt}-{index}.mp4" for prompt in asked for index in range(5)}


def test_vbench_numbers_go_round_the_prompts(generator, tmp_path):
    options = generator.resolve("", 0, {"frames": 1})
    job = Bulk(("a", "b: ü?"), 5, tmp_path, options, "vbench", "png")
    assert [job.file(n).name for n in range(5)] == ["a-0.png", "b: ü?-0.png", "a-1.png", "b: ü?-1.png", "a-2.png"]


@pytest.mark.parametrize(
    ("prompt", "message"), [("left/right", "has a '/'"), ("ü" * 130, f"of 266 bytes, but {MAX_NAME_BYTES}")]
)
def test_a_prompt_that_no_file_can_be_named_after_is_refused_before_sampling(generator, tmp_path, prompt, message):
    with pytest.raises(UserError, match=message):
        Bulk((prompt,), 1, tmp_path, generator.resolve("", 0, {}), "vbench")
    Bulk((prompt,), 1, tmp_path, generator.resolve("", 0, {}), "slug")


def test_a_name_of_the_greatest_length_can_be_written(generator, tmp_path):
    prompt = "x" * (MAX_NAME_BYTES - len("-0.png"))
    job = Bulk(
        (prompt,), 1, tmp_path, generator.resolve("", 0, {"frames": 1, "steps": 1, "guidance": 1.0}), "vbench", "png"
    )
    manifest, result = sample_in_bulk(generator, job, devices=jax.devices()[:1])
    assert result["made"] == 1 and job.file(0).exists() and manifest.merge(1) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shard", "2/2"), "from 0/COUNT on"),
        (("--num", 0), "--num is 0"),
        (("--seed", 2**31 - 2), "choose a smaller --seed"),
        (("--overwrite", "--shard", "0/2"), "delete the others' samples"),
    ],
)
def test_what_no_job_can_be_is_one_clear_error(random_run, tmp_path, capsys, words, message):
    assert main(command(random_run, tmp_path / "out", *words)) == 2
    assert message in capsys.readouterr().err
