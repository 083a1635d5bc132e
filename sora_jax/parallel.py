"""The whole layout on one page: mesh axes, logical dims, and which parameter has which dims.

*Axis* means a mesh axis, *dim* a tensor dimension. Models name the logical dims of their activations
(`constrain`); parameters get theirs from the path table below; `ShardingRules` maps dims to axes. Axes that the
mesh lacks, or that do not divide a dim, leave that dim whole, so that one model runs on any mesh.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipeline.errors import UserError

REPLICA, DATA, FSDP, CONTEXT, TENSOR = "replica", "data", "fsdp", "context", "tensor"
AXES = (REPLICA, DATA, FSDP, CONTEXT, TENSOR)
"""From the slowest link (`replica`, over DCN) to the fastest (`tensor`)."""


@dataclass(frozen=True)
class ShardingRules:
    """Logical dim -> mesh axes. A dim that is not named here is never sharded (`layer` on purpose)."""

    row: tuple[str, ...] = (REPLICA, DATA, FSDP)
    token: tuple[str, ...] = (CONTEXT,)
    height: tuple[str, ...] = (CONTEXT,)
    embed: tuple[str, ...] = (FSDP,)
    mlp: tuple[str, ...] = (TENSOR,)
    heads: tuple[str, ...] = (TENSOR,)
    vocab: tuple[str, ...] = (TENSOR,)

    def axes(self, dim: str | None) -> tuple[str, ...]:
        return getattr(self, dim, ()) if dim else ()


RULES = ShardingRules()
SAMPLING_RULES = dataclasses.replace(RULES, embed=(FSDP, CONTEXT))
"""Sampling spreads one row over many devices, along `context`; weights that are whole on each of them need not be."""

# The first pattern found in a parameter's path gives the dims of its trailing dimensions; leading ones (the
# scanned `layer`) stay whole. Biases and norms match nothing and are replicated.
PARAMETER_DIMS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(query|key|value)/kernel$", ("embed", "heads", None)),
    (r"attention_out/kernel$", ("heads", None, "embed")),
    (r"mlp_(in|gate)/kernel$", ("embed", "mlp")),
    (r"mlp_out/kernel$", ("mlp", "embed")),
    (r"modulation/kernel$", ("embed", "mlp")),
    (r"embedding$", ("vocab", "embed")),
    (r"(patch_in|text_in|time_in|time_out|pooled_in)/kernel$", (None, "embed")),
    (r"patch_out/kernel$", ("embed", None)),
    (r"(conv|time|stage_\d+)/kernel$", ("embed",)),  # the autoencoder's and the discriminator's
)


def parse_mesh(text: str) -> dict[str, int]:
    """The shape that `--mesh data=2,context=4` names. Raises UserError for other words; `make_mesh` knows the axes."""
    shape = {}
    for word in text.split(","):
        axis, _, size = word.partition("=")
        if not size.isdecimal() or int(size) < 1 or axis in shape:
            raise UserError(f"the mesh is '{text}', but must be axes with their sizes, such as data=2,context=4")
        shape[axis] = int(size)
    return shape


def make_mesh(
    shape: Mapping[str, int], devices: Sequence[Any] | None = None, option: str = "config.train.mesh"
) -> Mesh:
    """A mesh with every axis of AXES; absent ones have size 1, and all devices go to `data` if none is named.

    Raises UserError, which names the `option`, for an unknown axis or sizes that do not multiply to the number of
    devices.
    """
    devices = jax.devices() if devices is None else devices
    for axis in shape:
        if axis not in AXES:
            raise UserError(f"the mesh names an axis '{axis}', which is none of {', '.join(AXES)}")
    sizes = {axis: shape.get(axis, 1) for axis in AXES} if shape else dict.fromkeys(AXES, 1) | {DATA: len(devices)}
    product = math.prod(sizes.values())
    if product != len(devices):
        named = " x ".join(f"{a}={n}" for a, n in sizes.items() if n > 1) or "every axis 1"
        raise UserError(
            f"the mesh {named} needs {product} devices, but there are {len(devices)}; "
            f"set {option} so that its sizes multiply to {len(devices)}"
        )
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(_in_order_of_processes(_arrange(tuple(sizes.values()), devices)), AXES, axis_types=types)


def _arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Devices as a mesh of `shape`, neighbours on fast links; TPU slices follow each other along `replica`.

    Raises UserError if `replica` is no multiple of the number of slices.
    """
    slices = sorted({getattr(device, "slice_index", None) or 0 for device in devices})
    if len(slices) > 1:
        if shape[0] % len(slices):
            raise UserError(
                f"the devices are {len(slices)} slices, but the mesh has {REPLICA}={shape[0]}: traffic between slices "
                f"is slow, so {REPLICA} must be {len(slices)}, or a multiple of it"
            )
        within = (shape[0] // len(slices), *shape[1:])
        return np.concatenate([_arrange(within, [d for d in devices if d.slice_index == i]) for i in slices])
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # an axis that is no whole number of the torus's dims
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _in_order_of_processes(devices: np.ndarray) -> np.ndarray:
    """The same mesh with the blocks that hold one shard of rows in the order of their processes.

    A torus of TPU hosts interleaves them, and the loader of a host reads one range of rows.
    """
    blocks = devices.reshape(math.prod(devices.shape[: len(RULES.row)]), -1)
    order = sorted(range(len(blocks)), key=lambda i: sorted({d.process_index for d in blocks[i]}))
    return blocks[order].reshape(devices.shape)


def num_row_shards(mesh: Mesh) -> int:
    """How many devices along the axes that hold rows."""
    return math.prod(mesh.shape[a] for a in RULES.row)


def check_rows(mesh: Mesh, batch_rows: int, microbatches: int) -> None:
    """Raises UserError when a microbatch cannot be split over the axes that hold rows."""
    shards = num_row_shards(mesh)
    if batch_rows % (microbatches * shards):
        raise UserError(
            f"batch_rows={batch_rows} does not divide into {microbatches} microbatches over {shards} devices; "
            f"the nearest legal value is {max(1, round(batch_rows / (microbatches * shards))) * microbatches * shards}"
        )


def check_tokens(mesh: Mapping[str, int], row_tokens: int) -> None:
    """Raises UserError when the axis `context` of a mesh of this shape (`config.train.mesh`) cannot split a row."""
    parts = max(1, mesh.get(CONTEXT, 1))
    if row_tokens % parts:
        raise UserError(
            f"config.data.row_tokens={row_tokens} does not divide over context={parts} of config.train.mesh; "
            f"the nearest legal value is {max(1, round(row_tokens / parts)) * parts}"
        )


def process_rows(batch_rows: int, mesh: Mapping[str, int]) -> tuple[int, int]:
    """The half-open range of global rows that this process holds on a mesh of this shape (`config.train.mesh`).

    Processes that share the shards of a row, along `context` or `tensor`, hold the same rows. Raises UserError for a
    mesh or a number of rows that does not fit, or one that would give a process rows here and there.
    """
    if jax.process_count() == 1:
        return 0, batch_rows
    shards = _row_shards(make_mesh(mesh))
    check_rows(make_mesh(mesh), batch_rows, 1)
    mine = sorted({i for i, process in shards if process == jax.process_index()})
    if mine != list(range(mine[0], mine[-1] + 1)):
        raise UserError(
            f"config.train.mesh = {dict(mesh)} gives process {jax.process_index()} the shards {mine} of the rows, "
            "which are not neighbours; let context x tensor divide the devices of a host, or be a multiple of them"
        )
    share = batch_rows // (1 + max(i for i, _ in shards))
    return mine[0] * share, (mine[-1] + 1) * share


def num_row_groups(mesh: Mesh) -> int:
    """How many processes' batches make the global one; processes that hold the same rows count once."""
    shards = _row_shards(mesh)
    held = {i for i, process in shards if process == jax.process_index()}
    return len({i for i, _ in shards}) // max(1, len(held))


def _row_shards(mesh: Mesh) -> set[tuple[int, int]]:
    """(number of a shard of the rows, a process that holds it), all there are."""
    blocks = mesh.devices.reshape(math.prod(mesh.devices.shape[: len(RULES.row)]), -1)
    return {(i, d.process_index) for i, block in enumerate(blocks) for d in block}


def spec(
    dims: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: ShardingRules = RULES
) -> PartitionSpec:
    """The partition of `shape`, whose trailing dims are named by `dims`."""
    names = (None,) * (len(shape) - len(dims)) + tuple(dims)
    parts: list[Any] = []
    for name, size in zip(names, shape, strict=True):
        axes = tuple(a for a in rules.axes(name) if mesh.shape.get(a, 1) > 1)
        divides = axes and size % math.prod(mesh.shape[a] for a in axes) == 0
        parts.append(axes if divides else None)
    return PartitionSpec(*parts)


def parameter_dims(path: str) -> tuple[str | None, ...]:
    """The logical dims of the parameter at `path`, such as `dit/blocks/mlp_in/kernel`."""
    return next((dims for pattern, dims in PARAMETER_DIMS if re.search(pattern, path)), ())


def path_of(keys: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as `a/b/c`."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def state_shardings(tree: Any, mesh: Mesh, rules: ShardingRules = RULES) -> Any:
    """A NamedSharding for every array of a state: parameters, their EMA and moments follow the path table."""

    def sharding(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        dims = parameter_dims(path_of(keys))
        return NamedSharding(mesh, spec(dims if len(leaf.shape) >= len(dims) else (), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """For arrays (or shapes) of the *global* batch: rows over the row axes, everything else whole."""

    def sharding(value: Any) -> NamedSharding:
        dims = ("row", *(None,) * (len(value.shape) - 1)) if value.shape else ()
        return NamedSharding(mesh, spec(dims, value.shape, mesh))

    return {name: sharding(value) for name, value in batch.items()}


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows as global arrays on the mesh."""
    groups = num_row_groups(mesh)
    whole = {
        k: jax.ShapeDtypeStruct((v.shape[0] * groups, *v.shape[1:]) if v.shape else (), v.dtype)
        for k, v in batch.items()
    }
    shardings = batch_shardings(whole, mesh)
    return {
        k: jax.make_array_from_process_local_data(shardings[k], np.asarray(v), whole[k].shape) for k, v in batch.items()
    }


def put_frozen(tree: Any, mesh: Mesh) -> Any:
    """Host arrays that every process has whole, laid out as parameters are: each device gets its shard alone."""
    shardings = state_shardings(tree, mesh)
    return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]), tree, shardings)


def on_local_devices(tree: Any) -> tuple[Any, Mesh]:
    """Parameters that several processes hold, whole on this process's own devices, and the mesh of these.

    All processes must call it. One array at a time passes through the host's memory.
    """
    mesh = make_mesh({FSDP: jax.local_device_count()}, jax.local_devices())
    shardings = state_shardings(tree, mesh)
    return jax.tree.map(lambda x, s: jax.device_put(process_allgather(x, tiled=True), s), tree, shardings), mesh


def mesh_platform() -> str:
    """The platform ("cpu", "gpu", "tpu") of the mesh set by `jax.set_mesh`, which may be of devices that are not there;
    without a mesh, of the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, *dims: str | None) -> jax.Array:
    """`x` laid out as its logical dims say, on the mesh set by `jax.set_mesh`; without one, `x` itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.axis_sizes) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(dims, x.shape, mesh))
