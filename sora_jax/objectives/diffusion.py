"""The diffusion task: rectified flow on packed latent rows, with known tokens held clean."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from data_pipeline.errors import UserError
from data_pipeline.prefetch import make_stream
from data_pipeline.stages import StagedSource, fingerprint_of
from sora_jax import flops
from sora_jax.config import OptimConfig, TrainConfig, build_config, check_sections, choose
from sora_jax.diffusion import flow
from sora_jax.diffusion.denoiser import dit_definition, predict_velocity, with_text_features
from sora_jax.diffusion.flow import FlowConfig
from sora_jax.diffusion.generation import DiffusionConfig, PreviewConfig, load_generator, make_preview
from sora_jax.models.dit import FROZEN_TEXT, SIZES, Dit, DitConfig, forward_flops
from sora_jax.models.layers import initialise
from sora_jax.models.t5_files import read_t5_config
from sora_jax.objectives.data_stages import data_path, data_stages, flow_config
from sora_jax.objectives.frozen_text import cached_width, frozen_text, text_encoder_config
from sora_jax.parallel import check_tokens, process_rows
from sora_jax.types import Batch, DataStage, Frozen, LossOutput, ParamGroup, Params, Prepared, Sums, Task

TIME_BUCKETS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
"""Held-out loss is reported at these times: its mean over a run's own times hides where a model is weak."""


def prepare(config: Mapping[str, Any]) -> Prepared:
    """The task and its data from a run's config. Raises UserError before any model is built."""
    check_sections(config, required=("data", "model", "optim", "train"), optional=("flow", "preview"))
    optim = build_config(OptimConfig, config["optim"], "config.optim")
    train = build_config(TrainConfig, config["train"], "config.train")
    stages, path = data_stages(config), data_path(config)
    for stage in stages:
        check_tokens(train.mesh, stage.stream.row_tokens)
    rows = [process_rows(stage.stream.batch_rows, train.mesh) for stage in stages]
    source, heldout = (StagedSource(stages, split, rows) for split in ("train", "heldout"))
    layout, tokenizer = stages[-1].stream.layout(source.channels), source.tokenizer
    model = model_config(config["model"], layout.patch_values, tokenizer.vocab_size)
    width = cached_width(stages[-1].stream, model.text)
    preview = build_config(PreviewConfig, config.get("preview", {}), "config.preview")
    shows = bool(preview.prompts) and train.preview_every > 0 and jax.process_index() == 0
    text = frozen_text(config["model"], tokenizer, path, source.text_features, width, shows)
    cfg = DiffusionConfig(model, flow_config(config))
    generator = load_generator(cfg, layout, path)
    generator.codec.check_fingerprint(source.autoencoder_fingerprint, path)
    generator.fitting(preview.requests())
    task = dataclasses.replace(
        make_task(cfg, optim, text.of_step),
        preview=make_preview(generator, preview),
        preview_frozen=text.of_preview,
        fingerprints={
            "data": fingerprint_of(source.manifests),
            "autoencoder": source.autoencoder_fingerprint,
            "tokenizer": tokenizer.fingerprint,
            **text.fingerprints,
        },
    )
    return Prepared(
        task=task,
        train=train,
        make_batches=lambda start, num: make_stream(source, start, num, train.num_workers),
        eval_batches=lambda step: heldout.batches_of_stage(max(0, step - 1), train.eval_batches),
        config=dict(config),
        stages=tuple(DataStage(stage.start, stage.stream.batch_rows) for stage in stages),
    )


def make_task(cfg: DiffusionConfig, optim: OptimConfig, frozen: Frozen) -> Task:
    """What a generator trains, whatever its data."""
    return Task(
        name="diffusion",
        init=lambda key: {"dit": initialise(lambda rngs: Dit(cfg.model, rngs), key)},
        groups=(ParamGroup("dit", make_loss(cfg), optim),),
        evaluate=make_evaluate(cfg),
        flops=lambda batch: training_flops(batch_flops(cfg.model, batch)),
        frozen=frozen,
        activations=make_activations(cfg),
    )


def model_config(values: Mapping[str, Any], patch_values: int, vocab_size: int) -> DitConfig:
    """`config.model` is a named size, any of its fields overridden; patch and vocabulary sizes come from the data.

    `text_encoder` names a frozen encoder that takes the place of the trained one, `text`.
    """
    fields = dict(values)
    frozen = text_encoder_config(fields)
    if frozen is not None:
        if "text" in fields:
            raise UserError("config.model has both text and text_encoder; leave one of them out")
        del fields["text_encoder"]
    size = fields.pop("size", None)
    base = dict(choose(SIZES, size, "config.model.size")) if size else {}
    trained = {"vocab_size": vocab_size, **dict(fields.pop("text", {}))}
    text = trained if frozen is None else read_t5_config(Path(frozen.path), frozen.dtype)
    return build_config(DitConfig, {**base, **fields, "text": text, "patch_values": patch_values}, "config.model")


def make_loss(cfg: DiffusionConfig) -> Callable[..., LossOutput]:
    """Sum over noisy tokens of the mean squared error of the velocity; times and noise are drawn for each row."""

    def loss(params: Params, frozen: Frozen, batch: Batch, key: jax.Array, row_offset: jax.Array) -> LossOutput:
        times, noise = draw_times_and_noise(cfg.flow, batch, key, row_offset)
        batch = with_text_features(cfg.model, frozen, batch)
        errors, weights = velocity_errors(cfg, params["dit"], batch, times, noise)
        total, weight = jnp.sum(errors * weights), jnp.sum(weights)
        padding = jnp.sum(batch["segment_ids"] == 0).astype(jnp.float32), jnp.asarray(weights.size, jnp.float32)
        return LossOutput(total, weight, {"padding": padding})

    return loss


def draw_times_and_noise(
    cfg: FlowConfig, batch: Batch, key: jax.Array, row_offset: jax.Array
) -> tuple[Float[Array, "B G"], Float[Array, "B L P"]]:
    """The noise level of each segment and the noise of each token: functions of the step's key and the global row."""
    rows = row_offset + jnp.arange(batch["tokens"].shape[0])
    keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row)))(rows)
    reference = batch.get("reference_tokens", cfg.reference_tokens)
    times = jax.vmap(lambda k, n: flow.draw_times(k, n, cfg, reference))(keys[:, 0], batch["sample_tokens"])
    noise = jax.vmap(lambda k: jax.random.normal(k, batch["tokens"].shape[1:]))(keys[:, 1])
    return times, noise


def velocity_errors(
    cfg: DiffusionConfig, params: Any, batch: Batch, times: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Per token `[B, L]`: the squared error of the velocity, and 1 where the token is noisy, 0 where known or padding.

    `times` is `[B, G]`, a noise level for each segment; its known tokens have level 0.
    """
    group_times = jnp.stack([times, jnp.zeros_like(times)], axis=-1).reshape(times.shape[0], -1)
    t = jnp.take_along_axis(group_times, batch["noise_group_ids"], axis=1)[..., None]
    x_0 = batch["tokens"]
    x_t = flow.corrupt(x_0, noise, t)
    velocity = predict_velocity(cfg.model, cfg.flow, params, x_t, group_times, batch)
    is_noisy = (batch["segment_ids"] > 0) & (batch["noise_group_ids"] % 2 == 0)
    return jnp.mean(jnp.square(velocity - (noise - x_0)), axis=-1), is_noisy.astype(jnp.float32)


def make_evaluate(cfg: DiffusionConfig) -> Callable[..., Sums]:
    """Held-out loss at each of TIME_BUCKETS (shifted like training times) and their mean, with the key's noise."""

    def evaluate(params: Params, frozen: Frozen, batch: Batch, key: jax.Array) -> Sums:
        noise = jax.random.normal(key, batch["tokens"].shape)
        batch = with_text_features(cfg.model, frozen, batch)

        def at_time(t: jax.Array) -> tuple[jax.Array, jax.Array]:
            reference = batch.get("reference_tokens", cfg.flow.reference_tokens)
            times = flow.shift(jnp.broadcast_to(t, batch["sample_tokens"].shape), batch["sample_tokens"], reference)
            errors, weights = velocity_errors(cfg, params["dit"], batch, times, noise)
            return jnp.sum(errors * weights), jnp.sum(weights)

        totals, weights = jax.lax.map(at_time, jnp.asarray(TIME_BUCKETS))
        buckets = {f"loss_t{t:.2f}": (totals[i], weights[i]) for i, t in enumerate(TIME_BUCKETS)}
        return {"loss": (totals.sum(), weights.sum()), **buckets}

    return evaluate


def make_activations(cfg: DiffusionConfig) -> Callable[..., dict[str, jax.Array]]:
    """The residual stream after each block, half-way between clean and noise."""

    def activations(params: Params, frozen: Frozen, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        half = jnp.full(batch["sample_tokens"].shape, 0.5)
        group_times = jnp.stack([half, jnp.zeros_like(half)], axis=-1).reshape(half.shape[0], -1)
        t = jnp.take_along_axis(group_times, batch["noise_group_ids"], axis=1)[..., None]
        x_t = flow.corrupt(batch["tokens"], jax.random.normal(key, batch["tokens"].shape), t)
        network = nnx.merge(dit_definition(cfg.model), params["dit"])
        batch = with_text_features(cfg.model, frozen, batch)
        return {"activation_rms/dit/blocks": network.block_rms(x_t, group_times, batch)}

    return activations


def training_flops(parts: Mapping[str, float]) -> float:
    """FLOPs of a step whose forward pass has these parts: a frozen text encoder has no backward pass."""
    return flops.TRAINING * sum(parts.values()) - (flops.TRAINING - 1) * parts.get(FROZEN_TEXT, 0.0)


def batch_flops(cfg: DitConfig, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """FLOPs of one forward pass over the real tokens of a host's batch, by part."""
    video = [int(n) for n in batch["sample_tokens"].ravel() if n]
    num_segments = batch["sample_tokens"].shape[1]
    text = [np.bincount(row, minlength=num_segments + 1)[1:] for row in batch["text_segment_ids"]]
    lengths = np.concatenate(text)[batch["sample_tokens"].ravel() > 0]
    return forward_flops(cfg, video, lengths.tolist(), is_text_cached="text_features" in batch)
