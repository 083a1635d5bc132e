"""What the compiler is told for each platform, as versioned code: options of one compilation, not of the process.

They go to `jax.jit(compiler_options=…)`, so that a step that is compiled ahead of time for absent hardware gets what
the same step gets where it runs, and no environment variable has to be set before jax starts. `config.train.xla`
overrides single ones, or adds some; a value of "" takes one out. XLA wants "True"
and "False" so written.
"""

from collections.abc import Mapping

from sora_jax.parallel import mesh_platform

OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    # Collectives are moved apart from their waits, so that matmuls lie between; those of a loop's next round start in
    # this one (jax 0.10, https://docs.jax.dev/en/latest/gpu_performance_tips.html).
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": "True",
        "xla_gpu_enable_pipelined_all_gather": "True",
        "xla_gpu_enable_pipelined_reduce_scatter": "True",
        "xla_gpu_enable_pipelined_all_reduce": "True",
    },
    # The latency-hiding scheduler is libtpu's default (0.0.42). So is to split a matmul whose weights are gathered into
    # one for each shard, whose partial results go through memory each time: with rows of 16,384 tokens two thirds of a
    # step's traffic (LOG.md, "split matmuls"). Above this many MiB it would be done.
    # Gathering and summing are fused with matmuls instead, so that they run beside them: on a v5e that is so by itself
    # for gathering, on v5p and v6e little is without them (LOG.md, "collectives beside matmuls"). MaxText's
    # benchmarks set the same ones.
    "tpu": {
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
        "xla_tpu_enable_async_collective_fusion": "True",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "True",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "True",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "True",
        "xla_tpu_overlap_compute_collective_tc": "True",
        "xla_enable_async_all_gather": "True",
        "xla_enable_async_all_reduce": "True",
    },
}


def xla_options(overrides: Mapping[str, str]) -> dict[str, str] | None:
    """The options for the platform of the mesh of `jax.set_mesh`, with a run's own; None for none."""
    options = {**OPTIONS.get(mesh_platform(), {}), **overrides}
    return {name: value for name, value in options.items() if value != ""} or None
