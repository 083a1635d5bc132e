"""How fast packed rows are sampled on one device, as `sora-jax sample` does it, without decoding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.denoiser import SamplingConfig, sample_rows
from sora_jax.diffusion.guidance import kind_of
from sora_jax.evaluation.step_speed import best_mean_seconds, compile_timed, memory
from sora_jax.models.dit import FROZEN_TEXT, forward_flops
from sora_jax.objectives.synthetic import Synthetic, random_frozen


def measure_sampling(
    synthetic: Synthetic, params: Any, batch: dict[str, np.ndarray], sampling: SamplingConfig, rounds: int
) -> tuple[dict[str, Any], float]:
    """(seconds, compilation and bytes, useful FLOPs) of a batch of samples. `params` are the DiT's."""
    frozen = random_frozen(synthetic.config.model.text)  # a sample's prompt is never cached
    noise = jax.random.normal(jax.random.key(0), batch["tokens"].shape)
    arrays = {name: jnp.asarray(array) for name, array in batch.items()}
    arguments = frozen, arrays, noise, sampling.numbers, sampling.shift, jnp.int32(1)
    program, compile_s = compile_timed(
        sample_rows,
        *(synthetic.config.model, synthetic.config.flow, params, *arguments),
        num_steps=sampling.num_steps,
        solver=sampling.solver,
        kind=kind_of(sampling.numbers),
    )
    batch_s, tokens = best_mean_seconds(lambda: program(params, *arguments), jax.block_until_ready, 1, rounds)
    measured = {
        "compile_s": compile_s,
        "batch_s": batch_s,
        "seconds_per_sample": batch_s / np.count_nonzero(batch["sample_tokens"]),
        "seconds_per_solver_step": batch_s / sampling.num_steps,
        "is_finite": bool(jnp.isfinite(tokens).all()),
        "bytes_per_device": memory(program, tokens.devices().pop()),
    }
    return measured, sampling_flops(synthetic, batch, sampling)


def sampling_flops(synthetic: Synthetic, batch: dict[str, np.ndarray], sampling: SamplingConfig) -> float:
    """Forward passes with the captions and, under guidance, as many with captions of one token; a frozen text encoder
    is run once."""
    video = [int(n) for n in batch["sample_tokens"].ravel() if n]
    captions = [synthetic.text_tokens, *([1] if sampling.guidance != 1.0 else [])]
    total = 0.0
    for length in captions:
        parts = forward_flops(synthetic.config.model, video, [length] * len(video))
        once = parts.pop(FROZEN_TEXT, 0.0)
        total += sampling.num_calls * sum(parts.values()) + once
    return total
