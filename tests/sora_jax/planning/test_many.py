"""The list of production plans names configs that exist, and a list that is wrong is refused."""

import math
import runpy

import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.main import main
from sora_jax.commands.train import load_config
from sora_jax.planning.many import markdown, run_plans
from sora_jax.planning.subjects import Assumptions, diffusion_subject
from sora_jax.planning.topologies import parse_topology
from sora_jax.training.xla_options import OPTIONS, xla_options


@pytest.fixture
def plans(repository, monkeypatch):
    monkeypatch.chdir(repository)
    return runpy.run_path("configs/plans/production.py")["PLANS"]


def test_production_meshes_multiply_to_their_hardware_and_split_their_rows(plans):
    for plan in (p for p in plans if "sample" not in p):  # a sampling's mesh is made for its clips
        subject = diffusion_subject(load_config(plan["config"]).to_dict(), Assumptions())
        topology = parse_topology(plan["topology"], plan.get("slices", 1))
        sizes = {"replica": 1, "data": 1, "fsdp": 1, "context": 1, "tensor": 1, **subject.train.mesh}
        assert math.prod(sizes.values()) == topology.num_devices, plan
        shards = sizes["replica"] * sizes["data"] * sizes["fsdp"]
        assert subject.train.batch_rows % (subject.train.microbatches * shards) == 0, plan
        assert subject.model.num_heads % (sizes["context"] * sizes["tensor"]) == 0


def test_a_list_that_is_wrong_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="'topolgy', which is none of config"):
        list(run_plans([dict(topolgy="v5e:4x4")]))
    with pytest.raises(UserError, match="'second', which is none of size, seconds"):
        list(run_plans([dict(sample=dict(second=60))]))
    (tmp_path / "empty.py").write_text("PLANS = ()\n")
    for words, message in (
        (["--list", str(tmp_path / "empty.py")], "has no PLANS"),
        (["--list", "absent.py"], "there is no list of plans absent.py"),
        ([], "needs --config FILE.py and --topology"),
    ):
        assert main(["plan", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_table_has_a_row_for_plans_that_failed_too():
    table = markdown([dict(config="configs/x.py", topology="v5e:4x4", fits=False, exit_code=3)])
    assert "`x.py` on v5e:4x4 | failed with exit code 3" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_options_of_the_compiler_can_be_overridden_one_by_one(monkeypatch):
    assert xla_options({}) is None, "a CPU has the compiler's defaults"
    monkeypatch.setitem(OPTIONS, "cpu", {"a": "1", "b": "2"})
    assert xla_options({"a": "", "c": "3"}) == {"b": "2", "c": "3"}
