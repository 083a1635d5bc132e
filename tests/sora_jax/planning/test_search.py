"""The ranking of layouts: all of them legal, the memory that it prunes by exact where it can be, the order by time."""

import dataclasses
import math

import jax
import pytest

from data_pipeline.errors import UserError
from sora_jax.commands.train import load_config
from sora_jax.parallel import make_mesh
from sora_jax.planning.search import accumulations, meshes, rank, ranking
from sora_jax.planning.subjects import Assumptions
from sora_jax.planning.topologies import parse_topology
from tests.sora_jax.planning.test_plan import CONFIG

CPU = parse_topology("cpu:8")
ASSUMED = Assumptions(4, 64, 2)


def ranked(topology=CPU):
    return rank(load_config(CONFIG).to_dict(), ASSUMED, topology, jax.devices())


def test_every_candidate_is_legal_and_the_fastest_comes_first():
    candidates = ranked()
    assert [c.step_s for c in candidates] == sorted(c.step_s for c in candidates)
    assert {c.remat for c in candidates} == {"none", "dots", "full"}
    assert len({(str(c.mesh), c.microbatches, c.remat) for c in candidates}) == len(candidates) > 10
    for c in candidates:
        assert math.prod(c.mesh.values()) == 8 and 2 % c.mesh.get("context", 1) == 0
        assert 16 % (c.microbatches * c.mesh.get("data", 1) * c.mesh.get("fsdp", 1)) == 0
        changed = c.config(load_config(CONFIG).to_dict())
        assert changed["train"]["mesh"] == c.mesh and changed["model"]["remat"] == c.remat
    assert ranking(candidates[:3]).row_count == 3


def test_less_memory_leaves_fewer_and_then_none():
    by_size = sorted(c.total_bytes for c in ranked())
    half = dataclasses.replace(CPU, chip=dataclasses.replace(CPU.chip, memory=int(by_size[len(by_size) // 2])))
    left = ranked(half)
    assert 0 < len(left) < len(by_size) and max(c.total_bytes for c in left) <= half.usable_memory
    with pytest.raises(UserError, match="the smallest needs about"):
        ranked(dataclasses.replace(CPU, chip=dataclasses.replace(CPU.chip, memory=1000)))


def test_slices_are_an_axis_of_their_own():
    for mesh in meshes(parse_topology("v5p:4x4x4", num_slices=2), num_heads=28):
        assert mesh["replica"] == 2 and math.prod(mesh.values()) == 128
        assert 28 % mesh.get("context", 1) == 0


def test_accumulation_divides_the_rows_of_a_device():
    mesh = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
    assert accumulations(24, mesh) == [1, 2, 3, 6]
    assert accumulations(6, mesh) == []
