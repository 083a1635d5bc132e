import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.main import main
from sora_jax.commands.train import load_config
from sora_jax.parallel import make_mesh
from sora_jax.planning.compile import DoesNotFit, abstract_arguments, compile_step, refusal
from sora_jax.planning.memory import remedies, stored_bytes
from sora_jax.planning.report import make_report, tables
from sora_jax.planning.subjects import Assumptions, diffusion_subject
from sora_jax.planning.topologies import CHIPS, attached_topology, describe_devices, parse_topology, prepare_environment

CONFIG = str(Path(__file__).with_name("small_config.py"))
OPTIONS = ["--latent_channels", "4", "--vocab_size", "64", "--segments", "2"]


CPU = parse_topology("cpu:8")


def plan(capsys, *words: str) -> tuple[int, dict]:
    code = main(["plan", "--config", CONFIG, *OPTIONS, *words])
    return code, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def subject(*overrides: str, **model):
    config = load_config(CONFIG, overrides).to_dict()
    config["model"] = {name: value for name, value in {**config["model"], **model}.items() if value is not None}
    return diffusion_subject(config, Assumptions(4, 64, 2))


@functools.cache
def compiled(microbatches: int = 1):
    one, mesh = subject(f"--config.train.microbatches={microbatches}"), make_mesh({"fsdp": 8})
    return one, mesh, compile_step(one, mesh)


def test_predicted_bytes_are_the_bytes_that_eight_devices_hold(capsys):
    code, report = plan(capsys, "--topology", "cpu:8", "--measure")
    assert code == 0 and report["fits"] and report["mesh"] == {"fsdp": 8}
    for name in ("arguments", "outputs"):
        assert report["measured"][name]["predicted"] == report["measured"][name]["measured"] > 0
    assert report["bytes"]["stored"] == report["bytes"]["arguments"], "a CPU has no padded layouts"
    assert (
        sum(report["bytes"][n] for n in ("parameters", "optimizer", "ema", "batch", "counters"))
        == (report["bytes"]["stored"])
    )
    assert report["hidden"]["hidden"] == 0 and "fsdp all-gather" in report["collectives"]
    assert report["measured"]["step_s"] > 0


def test_the_bytes_of_each_kind_follow_the_mesh():
    """Parameters, their average and their moments shrink with fsdp and not with data; all three follow one layout."""
    sizes = {}
    for axis in ("data", "fsdp"):
        mesh = make_mesh({axis: 8})
        with jax.set_mesh(mesh):
            sizes[axis] = stored_bytes(*abstract_arguments(subject(), mesh))
        assert sizes[axis]["ema"] == sizes[axis]["parameters"]
        assert sizes[axis]["optimizer"] == 2 * sizes[axis]["parameters"] + 4  # two moments and a counter
    assert sizes["data"]["parameters"] > 3 * sizes["fsdp"]["parameters"]
    assert sizes["data"]["batch"] == sizes["fsdp"]["batch"]


def test_accumulation_gathers_weights_once_a_microbatch():
    """Twice the microbatches, twice the runs of the all-gathers in the blocks: loop counts reach the collectives."""
    reports = [make_report(one, CPU, mesh, program, 1e12) for one, mesh, program in (compiled(1), compiled(2))]
    once, twice = (report["collectives"]["fsdp all-gather"]["runs"] for report in reports)
    assert 1.7 * once <= twice <= 2 * once
    for report in reports:
        np.testing.assert_allclose(report["budget"]["days"] * 86_400 * report["tokens_per_s"], 1e12, rtol=1e-3)


def test_remedies_name_the_nearest_change_first():
    one, mesh = subject("--config.model.remat=none"), make_mesh({"data": 2, "fsdp": 4})
    more_fsdp, remat, microbatches = remedies(one, mesh)
    assert "--mesh fsdp=8" in more_fsdp and "remat=full" in remat and "microbatches=2" in microbatches
    (last,) = remedies(subject("--config.train.batch_rows=8"), make_mesh({"fsdp": 8}))
    assert "more devices, fewer tokens a row" in last


def test_a_step_that_does_not_fit_exits_with_2_and_says_why():
    one, mesh, program = compiled()
    small = dataclasses.replace(CPU, chip=dataclasses.replace(CPU.chip, memory=10_000))
    for outcome in (program, DoesNotFit(20_000, 10_000, "of the compiler")):
        report = make_report(one, small, mesh, outcome, 1e12)
        assert report["exit_code"] == 2 and not report["fits"] and report["remedies"]
        assert report["bytes"]["total"] > report["bytes"]["available"] == 10_000
        assert tables(report), "people are told too"


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 28.11G of 15.75G hbm. Exceeded hbm capacity by 12.36G.", 28.11),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (28.11G) exceeds available HBM "
            "(15.75G).",
            28.11,
        ),
        ("The stack is too deep.", None),
        ("", None),
    ],
)
def test_both_ways_in_which_a_compiler_says_that_it_is_too_much_are_understood(said, needed):
    error = RuntimeError(f"RESOURCE_EXHAUSTED: {said}")
    if needed is None:
        with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
            refusal(error)
    else:
        found = refusal(error)
        assert (found.needed, found.available) == (int(needed * 2**30), int(15.75 * 2**30))


def test_a_published_text_encoder_is_planned_without_its_files():
    """T5 v1.1 XXL's encoder: 4.76 billion parameters, frozen, read in bf16 and counted forward only."""
    one = subject(text=None, text_encoder=dict(path="absent/t5-v1_1-xxl"))
    sizes = [x.size for x in jax.tree.leaves(one.task.frozen)]
    np.testing.assert_allclose(sum(sizes), 4.762e9, rtol=1e-3)
    own = subject()
    gained = one.useful_flops - own.useful_flops
    text_tokens = one.train.batch_rows * 16
    np.testing.assert_allclose(gained, 2 * text_tokens * 24 * (4 * 4096**2 + 3 * 4096 * 10_240), rtol=0.01)
    with pytest.raises(UserError, match="holds no text encoder"):
        subject(text=None, text_encoder=dict(path="absent/unknown"))


BAD = {
    "no such kind": (["--topology", "v9:4x4"], "v5e and v6e take a torus of two dims"),
    "wrong rank": (["--topology", "v5p:8x8"], "v5p one of three"),
    "no number": (["--topology", "cpu:none"], "cpu a number"),
    "slices of GPUs": (["--topology", "h100:2x8", "--slices", "2"], "slices is 2"),
    "mesh in words": (["--topology", "cpu:8", "--mesh", "fsdp"], "must look like fsdp=128"),
    "mesh of another size": (["--topology", "cpu:8", "--mesh", "fsdp=4"], "needs 4 devices, but there are 8"),
    "rows": (["--topology", "cpu:8", "--config.train.batch_rows=12"], "does not divide into 1 microbatches over 8"),
    "measuring what is absent": (["--topology", "v5p:4x4x4", "--measure"], "not attached"),
    "no tokens": (["--topology", "cpu:8", "--tokens", "0"], "--tokens is 0.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, capsys):
    words, message = BAD[case]
    assert main(["plan", "--config", CONFIG, *OPTIONS, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


def test_only_a_generators_layouts_are_searched(repository, capsys):
    config = str(repository / "configs" / "autoencoder_quickstart.py")
    assert main(["plan", "--config", config, "--topology", "cpu:8", "--search", "2"]) == 2
    assert "config" in capsys.readouterr().err


def test_a_topology_that_is_not_installed_names_the_extra():
    if importlib.util.find_spec("libtpu") is None:
        with pytest.raises(UserError, match=r"sora-jax\[tpu\]"):
            prepare_environment(parse_topology("v5p:4x4x4"))


class TestLinks:
    """The speed of a group's links, on tori and nodes that can be worked out by hand."""

    class Device:
        def __init__(self, number: int, coords: tuple[int, ...] = (), slice_index: int = 0):
            self.id, self.coords, self.slice_index = number, coords, slice_index

    def torus(self, *places: tuple[int, ...]):
        return [self.Device(i, place) for i, place in enumerate(places)]

    def test_a_ring_has_two_directions_and_a_line_one(self):
        v5p, v5e = parse_topology("v5p:4x4x4"), parse_topology("v5e:4x4")
        assert v5p.bandwidth(self.torus(*[(0, 0, z) for z in range(4)])) == ("ici", 2 * v5p.chip.link)
        assert v5e.bandwidth(self.torus(*[(0, y, 0) for y in range(4)])) == ("ici", v5e.chip.link)
        whole = self.torus(*[(x, y, z) for x in range(4) for y in range(4) for z in range(4)])
        assert v5p.bandwidth(whole) == ("ici", 6 * v5p.chip.link)

    def test_interleaved_groups_share_their_links(self):
        v6e = parse_topology("v6e:16x16")
        assert v6e.bandwidth(self.torus(*[(x, 0, 0) for x in range(0, 16, 4)])) == ("ici", 2 * v6e.chip.link / 4)

    def test_slices_and_nodes_are_joined_by_the_network(self):
        pair = [self.Device(0, (0, 0, 0), 0), self.Device(1, (0, 0, 0), 1)]
        v5p = parse_topology("v5p:4x4x4", num_slices=2)
        assert v5p.num_devices == 128 and v5p.bandwidth(pair) == ("network", v5p.chip.network)
        h100 = parse_topology("h100:4x8")
        assert h100.bandwidth([self.Device(i) for i in range(8)]) == ("nvlink", h100.chip.link)
        assert h100.bandwidth([self.Device(i) for i in (0, 8, 16)]) == ("network", h100.chip.network)
        # Eight adapters carry what a node's eight GPUs need once.
        assert h100.bandwidth([self.Device(i) for i in range(16)]) == ("network", 8 * h100.chip.network)


def test_devices_of_this_process_are_attached():
    topology = attached_topology()
    assert topology.num_devices == len(jax.devices()) == len(describe_devices(topology))
    assert topology.chip is CHIPS["cpu"]
