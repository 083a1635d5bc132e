"""One plan for each platform's compiler: run in a process of its own, whose environment the plan itself sets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = str(Path(__file__).with_name("small_config.py"))
OURS = ("JAX_", "XLA_", "TPU_", "LIBTPU")


def plan(*words: str) -> tuple[int, dict, str]:
    command = [sys.executable, "-m", "sora_jax.commands.main", "plan", "--config", CONFIG, "--latent_channels", "4"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=environment)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}, done.stderr


def check(report: dict, devices: int) -> None:
    assert report["fits"] and report["devices"] == devices
    assert report["bytes"]["arguments"] >= 0.99 * report["bytes"]["stored"] > 0
    assert report["bytes"]["total"] < report["bytes"]["available"]
    assert report["roofline"]["step_s"] > 0 and 0 < report["mfu_bound"] < 1
    rows = report["collectives"]
    assert {name.split()[0] for name in rows} >= {"fsdp"} and all(
        row["runs"] >= row["in_program"] for row in rows.values()
    )
    assert report["hidden"]["hidden"] > 0, "the compilers for TPUs and GPUs overlap some of it"


@pytest.mark.tpu_compiler
def test_a_tpu_slice_is_planned_where_there_is_none():
    code, report, log = plan("--topology", "v5e:2x4")
    assert code == 0, log
    check(report, 8)
    assert {row["link"] for row in report["collectives"].values()} == {"ici"}


@pytest.mark.tpu_compiler
def test_two_slices_are_joined_along_replica_by_the_network():
    mesh = ("--mesh", "replica=2,fsdp=4", "--config.train.batch_rows=8")
    code, report, log = plan("--topology", "v5e:2x2", "--slices", "2", *mesh)
    assert code == 0, log
    assert report["devices"] == 8 and report["mesh"] == {"replica": 2, "fsdp": 4}
    assert {row["link"] for name, row in report["collectives"].items() if "replica" in name} == {"network"}
    code, _, log = plan("--topology", "v5e:2x2", "--slices", "2", "--mesh", "fsdp=8")
    assert code == 2 and "replica must be 2" in log


@pytest.mark.tpu_compiler
def test_a_clip_is_planned_on_a_tpu_slice():
    clip = ("--size", "128x128", "--seconds", "1", "--fps", "8", "--steps", "3")
    code, report, log = plan("--sample", "--topology", "v5e:2x4", *clip)
    assert code == 0, log
    assert report["fits"] and report["mesh"] == {"context": 8}
    assert report["seconds_per_sample"] > 0 and report["roofline"]["unknown_loops"] == 0


@pytest.mark.tpu_compiler
def test_a_shape_that_the_compiler_does_not_know_lists_the_legal_ones():
    code, _, log = plan("--topology", "v5p:5x3x7")
    assert code == 2 and "v5p one of three" in log


@pytest.mark.cuda_compiler
def test_a_gpu_pod_is_planned_where_there_is_none():
    code, report, log = plan("--topology", "h100:2x8", "--mesh", "data=2,fsdp=8")
    assert code == 0, log
    check(report, 16)
    links = {name.split()[0]: row["link"] for name, row in report["collectives"].items()}
    assert links["fsdp"] == "nvlink" and "network" in links.values()
