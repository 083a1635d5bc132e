"""Hardware that a plan is made for: chips from their data sheets, slices and pods, and the speed of what joins them.

    v5p:8x8x8     a TPU slice by its torus     h100:16x8    nodes x GPUs a node
    cpu:8         fake devices                 attached     what this process has

Bandwidths are bytes/s in one direction; those of a group of devices are a device's share of what the group's traffic
can use.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sora_jax.flops import PEAK_BF16_FLOPS

GiB = 2**30
ATTACHED = "attached"


@dataclass(frozen=True)
class Chip:
    """One device. `link` is one direction of one ICI port, or of a GPU's whole NVLink; `network` a device's share of
    the data-centre network or of its node's adapters. `reserved` bytes are the runtime's own."""

    kind: str
    platform: str
    memory: int
    reserved: int
    peak_bf16: float
    memory_bandwidth: float
    link: float
    network: float
    source: str
    torus_dims: int = 0
    wraps_at: int = 0
    """a torus dim of a multiple of this many chips (or of exactly 16, where it is 16) closes to a ring"""
    target: str = ""
    """GPUs: what XLA is told of the device, beyond what stands above"""


_TPU_DOCS = "https://cloud.google.com/tpu/docs"
_HOPPER = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472 "
    "threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 "
    "block_dim_limit_y: 65535 block_dim_limit_z: 65535 l2_cache_size: 52428800 clock_rate_ghz: 1.98 "
    "shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 "
    "registers_per_block_limit: 65536"
)

CHIPS: dict[str, Chip] = {
    # ICI: v5e 1,600 Gb/s over 4 ports, v5p 1,200 GB/s both ways over 6, v6e 3,200 Gb/s over 4.
    # DCN: v5e 2 x 100 Gb/s and v6e 4 x 200 Gb/s for 8 chips, v5p 50 Gb/s a chip.
    # The compiler keeps 256 MiB of a v5e's memory for itself ("of 15.75G hbm" in its messages), of the others the same.
    "v5e": Chip(
        "TPU v5 lite", "tpu", 16 * GiB, GiB // 4, PEAK_BF16_FLOPS["TPU v5 lite"], 819e9, 50e9, 3.125e9,
        f"{_TPU_DOCS}/v5e", torus_dims=2, wraps_at=16,
    ),
    "v5p": Chip(
        "TPU v5p", "tpu", 95 * GiB, GiB // 4, PEAK_BF16_FLOPS["TPU v5p"], 2765e9, 100e9, 6.25e9,
        f"{_TPU_DOCS}/v5p", torus_dims=3, wraps_at=4,
    ),
    "v6e": Chip(
        "TPU v6 lite", "tpu", 32 * GiB, GiB // 4, PEAK_BF16_FLOPS["TPU v6 lite"], 1638e9, 100e9, 12.5e9,
        f"{_TPU_DOCS}/v6e", torus_dims=2, wraps_at=16,
    ),
    # NVLink 4: 900 GB/s both ways; one 400 Gb/s adapter a GPU, as in a DGX. JAX is given 92 % of the memory
    # (XLA_PYTHON_CLIENT_MEM_FRACTION=.92): the rest is CUDA's, NCCL's and the libraries'.
    "h100": Chip(
        "NVIDIA H100 80GB HBM3", "gpu", 84978434048, int(0.08 * 84978434048), PEAK_BF16_FLOPS["NVIDIA H100 80GB HBM3"],
        3350e9, 450e9, 50e9, "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet",
        target=_HOPPER,
    ),
    "h200": Chip(
        "NVIDIA H200", "gpu", 150121545728, int(0.08 * 150121545728), PEAK_BF16_FLOPS["NVIDIA H200"],
        4800e9, 450e9, 50e9, "https://www.nvidia.com/en-us/data-center/h200", target=_HOPPER,
    ),
    # No data sheet: a plan for fake devices is about bytes, and is held against what the attached devices report.
    "cpu": Chip("cpu", "cpu", 16 * GiB, 0, 1e11, 2e10, 1e10, 1e9, "round numbers, for tests of plans"),
}  # fmt: skip

LEGAL = (
    "v5e and v6e take a torus of two dims (v5e:2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16), v5p one of three (v5p:2x2x1, "
    "2x2x2, 2x4x4, 4x4x4, 4x4x8, … 16x16x24), h100 and h200 nodes x GPUs a node (h100:16x8), cpu a number (cpu:8); "
    "attached is what this machine has"
)


@dataclass(frozen=True)
class Topology:
    """`num_slices` copies of `shape` chips, joined by the data-centre network."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape) * self.num_slices

    @property
    def usable_memory(self) -> int:
        """Bytes of one device that a program may have."""
        return self.chip.memory - self.chip.reserved

    def bandwidth(self, group: Sequence[Any]) -> tuple[str, float]:
        """(link, bytes/s in and out of one device) for traffic among these devices: `ici`, `nvlink` or `network`."""
        if self.chip.platform == "tpu":
            if len({getattr(device, "slice_index", 0) for device in group}) > 1:
                return "network", self.chip.network
            return "ici", self._torus_bandwidth(np.array([device.coords for device in group]))
        nodes = {device.id // self.shape[-1] for device in group}
        if self.chip.platform == "gpu" and len(nodes) > 1:
            # What leaves a node is spread over the adapters of the group's GPUs in it, which need a node's worth once.
            return "network", min(self.chip.link, self.chip.network * len(group) / len(nodes))
        return "nvlink" if self.chip.platform == "gpu" else "host", self.chip.link

    def ring_bandwidth(self, group: Sequence[Any]) -> tuple[str, float]:
        """The same for a ring of permutations: two directions at once on a torus, whatever its path."""
        link, bandwidth = self.bandwidth(group)
        return (link, self.chip.link * min(2, len(group) - 1)) if link == "ici" else (link, bandwidth)

    def _torus_bandwidth(self, coordinates: np.ndarray) -> float:
        """The sum over the torus dims that the group extends along: both directions of a ring, one of a line. Groups
        that interleave along a dim share its links."""
        total = 0.0
        for dim, size in enumerate(self.shape):
            values = np.unique(coordinates[:, dim])
            if len(values) > 1:
                stride = int(np.min(np.diff(values)))
                closes = len(values) * stride == size and self._wraps(size)
                total += (2 if closes else 1) * self.chip.link / stride
        return total or self.chip.link

    def _wraps(self, size: int) -> bool:
        return size == 16 if self.chip.wraps_at == 16 else size % self.chip.wraps_at == 0


def parse_topology(name: str, num_slices: int = 1) -> Topology:
    """`kind:AxB…` as a topology. Raises UserError that lists what there is."""
    kind, _, dims = name.partition(":")
    shape = tuple(int(n) for n in dims.split("x")) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", dims) else ()
    rank = {"tpu": CHIPS[kind].torus_dims, "gpu": 2, "cpu": 1}[CHIPS[kind].platform] if kind in CHIPS else 0
    if not shape or len(shape) != rank:
        raise UserError(f"there is no topology '{name}'; {LEGAL}")
    if num_slices < 1 or (num_slices > 1 and CHIPS[kind].platform != "tpu"):
        raise UserError(f"slices is {num_slices}, but must be at least 1, and 1 for all but TPUs (a GPU pod is nodes)")
    return Topology(name, CHIPS[kind], shape, num_slices)


def attached_topology() -> Topology:
    """What this process sees, by the name ATTACHED; jax starts here. Raises UserError for an unknown device."""
    import jax

    devices = jax.devices()
    kinds = {chip.kind: chip for chip in CHIPS.values()}
    if devices[0].device_kind not in kinds:
        raise UserError(f"there is no data sheet of a '{devices[0].device_kind}' here, only of {', '.join(kinds)}")
    chip = kinds[devices[0].device_kind]
    if chip.platform == "tpu":
        shape = tuple(int(n) for n in np.max([device.coords for device in devices], axis=0) + 1)[: chip.torus_dims]
        return Topology(ATTACHED, chip, shape)
    nodes = (jax.process_count(),) if chip.platform == "gpu" else ()
    return Topology(ATTACHED, chip, (*nodes, len(devices) // math.prod(nodes)))


def prepare_environment(topology: Topology) -> None:
    """Sets what the compilers for absent hardware read when they start: call it before the first use of jax.

    Raises UserError where the compiler is not installed.
    """
    platform = topology.chip.platform
    needed = {"tpu": ("libtpu", "tpu"), "gpu": ("jax_cuda12_plugin", "cuda12-compiler")}.get(platform)
    if needed and importlib.util.find_spec(needed[0]) is None:
        raise UserError(f"a plan for {topology.name} needs {needed[0]}: pip install 'sora-jax[{needed[1]}]'")
    os.environ["JAX_PLATFORMS"] = "cpu"  # the planning machine's own devices compute nothing
    if needed:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a program for absent devices cannot be read back
    if platform == "tpu":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is opened, so plans may run side by side
    if platform == "gpu":
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    if platform == "cpu":
        count = f"--xla_force_host_platform_device_count={topology.num_devices}"
        if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def describe_devices(topology: Topology) -> list[Any]:
    """The topology's devices, for a mesh. Raises UserError for a shape that the compiler does not know."""
    import jax
    from jax.experimental import topologies

    if topology.name == ATTACHED:
        return jax.devices()
    if topology.chip.platform == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < topology.num_devices:
            raise UserError(f"{topology.name} needs {topology.num_devices} devices, but XLA_FLAGS gave {len(devices)}")
        return devices[: topology.num_devices]
    try:
        if topology.chip.platform == "gpu":
            name = "x".join(map(str, (1, *topology.shape)))
            return topologies.get_topology_desc(
                "", "cuda", target_config=gpu_target(topology.chip), topology=name
            ).devices
        slices = {"num_slices": topology.num_slices} if topology.num_slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **slices).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"the compiler knows no topology '{topology.name}' ({reason}); {LEGAL}") from error


def gpu_target(chip: Chip) -> str:
    """A GPU as XLA's GpuTargetConfigProto in text form."""
    return (
        f"gpu_device_info {{ {chip.target} memory_bandwidth: {int(chip.memory_bandwidth)} "
        f'device_memory_size: {chip.memory} }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} '
        f'runtime_version {{ major: 12 minor: 9 }} device_description_str: "{chip.kind}"'
    )
