"""Programs whose collectives, trip counts and bytes are known, compiled for eight fake devices and read back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.planning import hlo
from sora_jax.planning.collectives import find_collectives, summarise
from sora_jax.planning.groups import parse_groups, varying_axes
from sora_jax.planning.topologies import parse_topology
from sora_jax.planning.traffic import memory_traffic

ROUNDS = 5
BLOCKS = P("data", "fsdp")
CPU = parse_topology("cpu:8")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def compiled(mesh, fn, *shapes, spec):
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec)) for s in shapes]
    return hlo.parse(jax.jit(fn).lower(*arguments).compile().as_text())


def found(mesh, body, shape=(16, 32)):
    """Collectives of `ROUNDS` rounds of `body` on each device's `[8, 8]` block."""
    local = jax.shard_map(body, mesh=mesh, in_specs=BLOCKS, out_specs=BLOCKS, check_vma=False)
    module = compiled(
        mesh, lambda x: jax.lax.scan(lambda c, _: (local(c), None), x, None, length=ROUNDS)[0], shape, spec=BLOCKS
    )
    return find_collectives(module, mesh.devices.ravel(), mesh.shape, CPU)


BLOCK = 8 * 8 * 4
"""bytes of one device's part"""

CASES = {
    "all-gather": (lambda x: jax.lax.all_gather(x, "fsdp").sum(0), ("fsdp",), 4, 3 * BLOCK),
    "all-reduce": (lambda x: jax.lax.psum(x, ("data", "fsdp")) * 0.1, ("data", "fsdp"), 8, 2 * 7 / 8 * BLOCK),
    "reduce-scatter": (
        lambda x: jnp.tile(jax.lax.psum_scatter(x, "data", tiled=True), (2, 1)), ("data",), 2, BLOCK / 2
    ),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True), ("fsdp",), 4, 3 / 4 * BLOCK),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]), ("fsdp",), 4, BLOCK
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_a_collective_in_a_loop_is_found_with_its_axes_and_bytes(mesh, kind):
    body, axes, size, wire = CASES[kind]
    (only,) = found(mesh, body)
    assert (only.kind, only.axes, only.group_size, only.count) == (kind, axes, size, ROUNDS)
    np.testing.assert_allclose(only.wire_bytes, wire)
    np.testing.assert_allclose(only.seconds, ROUNDS * wire / CPU.chip.link)
    assert not only.is_hidden, "a CPU waits for every collective"
    row = summarise([only])[f"{'+'.join(axes)} {kind}"]
    assert row["runs"] == ROUNDS and row["exposed_seconds"] == only.seconds


def test_loops_within_loops_multiply(mesh):
    def inner(x, _):
        return jnp.sin(x) @ x, None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=3)[0], None

    module = compiled(mesh, lambda x: jax.lax.scan(outer, x, None, length=7)[0], (8, 8), spec=P())
    assert {1.0, 7.0, 21.0} <= set(module.times_run.values()) and module.unknown_loops == 0


def test_a_loop_that_data_ends_is_counted_once_and_said(mesh):
    module = compiled(mesh, lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), (8, 8), spec=P())
    assert module.unknown_loops == 1


def test_a_scan_that_slices_its_input_moves_each_slice_once(mesh):
    """A stack of `n` matrices read by a scan is `n` matrices of traffic, not `n²`."""
    width, rounds = 256, 16

    def body(x, w):
        return jnp.tanh(x @ w), None

    moved = {}
    for n in (rounds, 2 * rounds):
        stack = (n, width, width)
        module = compiled(mesh, lambda x, w: jax.lax.scan(body, x, w)[0], (width, width), stack, spec=P())
        moved[n] = memory_traffic(module)
    per_round = (moved[2 * rounds] - moved[rounds]) / rounds
    matrix = 4 * width**2
    assert 3 * matrix <= per_round <= 10 * matrix, "x and w are read and the result written, some of them by copies"


NOTATIONS = {
    "replica_groups={{0,1,2,3},{4,5,6,7}}, use": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=[2,4]<=[8], dimensions={0}": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=[4,2]<=[2,4]T(1,0), x": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "replica_groups=mesh['a'=2,'b'=4] {'b'}, x": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "replica_groups=mesh['a'=2,'b'=4] {'a'}, x": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "replica_groups=mesh['a'=8] {'a':(2)2}, x": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "source_target_pairs={{0,1},{1,0},{2,3},{3,2}}, x": [[0, 1], [2, 3]],
    "source_target_pairs={{0,2},{2,1}}, x": [[0, 2, 1]],
    "dimensions={0}": [[0, 1, 2, 3, 4, 5, 6, 7]],
}


@pytest.mark.parametrize("text", NOTATIONS)
def test_every_notation_of_groups_is_read(text):
    assert parse_groups(f", channel_id=1, {text}", 8).tolist() == NOTATIONS[text]


def test_groups_vary_along_the_axes_of_the_mesh():
    shape = {"replica": 1, "data": 2, "fsdp": 4}
    of = functools.partial(varying_axes, mesh_shape=shape)
    assert of(np.array([[0, 1, 2, 3]])) == ("fsdp",)
    assert of(np.array([[0, 4], [1, 5]])) == ("data",)
    assert of(np.arange(8)[None]) == ("data", "fsdp")
    assert of(np.array([[0]])) == ()


def test_bytes_of_shapes():
    assert hlo.shape_bytes("(bf16[2,3]{1,0}, f32[], pred[8], f8e4m3fn[4], u32[2]{0})") == 12 + 4 + 8 + 4 + 8
    assert hlo.shape_bytes("(bf16[2,3]{1,0:T(8,128)S(1)}, s4[8]{0:T(8)(2,1)})", main_memory_only=True) == 4


def test_a_kernels_metadata_over_several_lines_ends_no_computation():
    """TPU kernels carry theirs so; what came after it was once lost, the loop over the blocks included."""
    text = """HloModule m
%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %k = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="kernel"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %first = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="kernel"}
  ROOT %second = f32[8]{0} call(%first), to_apply=%body
}
"""
    module = hlo.parse(text)
    assert [i.name for i in module.computations["main"].instructions] == ["x", "first", "second"]
    assert module.times_run == {"main": 1.0, "body": 1.0}


def test_of_a_conditionals_branches_the_dearest_is_counted_and_a_prefetch_once():
    """Attention's tables of several widths are branches, each with a kernel that reads whole operands: one of them
    runs. A copy into fast memory is a tuple of its destination, its source and a flag."""
    text = """HloModule m
%narrow (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %k = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call"
}

%wide (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %table = f32[100]{0} iota(), iota_dimension=0
  ROOT %k.1 = f32[8]{0} custom-call(%q, %table), custom_call_target="tpu_custom_call"
}

ENTRY %main (i: s32[], x: f32[8], w: f32[64]) -> f32[8] {
  %i = s32[] parameter(0)
  %x = f32[8]{0} parameter(1)
  %w = f32[64]{0} parameter(2)
  %copy-start = (f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%w)
  %copy-done = f32[64]{0:S(1)} copy-done(%copy-start)
  ROOT %c = f32[8]{0} conditional(%i, %x, %x), branch_computations={%narrow, %wide}
}
"""
    assert memory_traffic(hlo.parse(text)) == 4 * 64 + 4 * (8 + 100 + 8)
