"""How fast a training step is on the devices that are attached, and what it holds in their memory."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sora_jax.config import TrainConfig
from sora_jax.flops import CONVENTION, PEAK_BF16_FLOPS, measured_matmul_peak
from sora_jax.parallel import check_rows, make_mesh, put_batch, put_frozen, state_shardings
from sora_jax.training.compile_cache import without_compile_cache
from sora_jax.training.step import abstract_state, init_state, make_train_step
from sora_jax.types import Task


def measure_train_step(
    task: Task, config: TrainConfig, batch: dict[str, np.ndarray], num_steps: int, rounds: int
) -> dict[str, Any]:
    """The task's own jitted step over one batch: seconds, compilation, the last loss, and bytes on each device.

    `step_s` is the mean of `num_steps` steps in the best of `rounds` rounds (noise only adds).
    """
    mesh = make_mesh(config.mesh)
    check_rows(mesh, config.batch_rows, config.microbatches)
    with jax.set_mesh(mesh):
        shardings = state_shardings(abstract_state(task, config), mesh)
        carried: dict[str, Any] = {"state": init_state(task, config, shardings)}
        arguments = put_frozen(task.frozen, mesh), put_batch(batch, mesh)
        step, compile_s = compile_timed(make_train_step(task, config, shardings), carried["state"], *arguments)

        def run() -> Any:
            carried["state"], metrics = step(carried["state"], *arguments)
            return metrics

        step_s, metrics = best_mean_seconds(run, jax.block_until_ready, num_steps, rounds)
    loss = dict(zip(metrics.names, np.asarray(metrics.values), strict=True))["loss"]
    return {
        "compile_s": compile_s,
        "step_s": step_s,
        "loss": float(loss[0] / loss[1]),
        "bytes_per_device": memory(step, mesh.local_devices[0]),
    }


def compile_timed(jitted: Any, *arguments: Any, **static: Any) -> tuple[Any, float]:
    """The program compiled for these arguments, and the seconds it took, without help from the compile cache."""
    lowered = jitted.lower(*arguments, **static)
    with without_compile_cache():
        begun = time.perf_counter()
        return lowered.compile(), time.perf_counter() - begun


def best_mean_seconds(
    run: Callable[[], Any], wait: Callable[[Any], Any], num_steps: int, rounds: int
) -> tuple[float, Any]:
    """(seconds of one `run`, what the last one returned): the best round's mean, after one that is not timed.

    Calls of a round are queued one behind the other; `wait` returns when its argument is there.
    """
    result = run()
    wait(result)
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(num_steps):
            result = run()
        wait(result)
        seconds.append((time.perf_counter() - begun) / num_steps)
    return min(seconds), result


def memory(compiled: Any, device: Any) -> dict[str, int | None]:
    """Bytes on one device: those of the compiled program, and the most in use so far where the device tells."""
    analysis = compiled.memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "outputs_in_arguments": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "offloaded_to_host": analysis.host_temp_size_in_bytes,
        "peak_in_use": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }


def describe_devices() -> dict[str, Any]:
    """What is attached; a CPU's cores, since fake devices share them."""
    device = jax.devices()[0]
    described = {"device": device.device_kind, "platform": device.platform, "num_devices": jax.device_count()}
    return described | ({"cores": len(os.sched_getaffinity(0))} if device.platform == "cpu" else {})


def rates(step_s: float, tokens: int, flops: float, num_devices: int) -> dict[str, Any]:
    """What a step of `tokens` live video tokens and `flops` useful FLOPs in `step_s` means on so many devices.

    The measured peak is that of a matrix product, in float32 on a CPU (whose fake devices are one), else in bfloat16;
    the sheet's is bf16."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    dtype, size = ("float32", 1024) if on_cpu else ("bfloat16", 8192)
    measured = measured_matmul_peak(dtype, size, 10) * (1 if on_cpu else num_devices)
    sheet = PEAK_BF16_FLOPS[device.device_kind] * num_devices if device.device_kind in PEAK_BF16_FLOPS else None
    return {
        "tokens_per_s": tokens / step_s,
        "useful_tflops_per_s": flops / step_s / 1e12,
        "mfu_of_measured_peak": flops / step_s / measured,
        "mfu_of_data_sheet": flops / step_s / sheet if sheet else None,
        "measured_peak": {"tflops_per_s": measured / 1e12, "matmul": f"{dtype} {size}x{size}"},
        "data_sheet_peak": {"tflops_per_s": sheet / 1e12, "matmul": "bfloat16, dense"} if sheet else None,
        "useful_flops_per_step": flops,
        "flop_convention": CONVENTION,
    }
