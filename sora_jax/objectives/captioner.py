"""The captioner task: the cross-entropy of captions, and a contrastive loss of clips and captions (CoCa, arXiv
2205.01917, eq. 4).

The contrastive loss is over all rows that are computed together: with rows spread over devices that is the global
batch, with `config.train.microbatches` one microbatch. Rows with the very same caption are not held against each other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from data_pipeline.caption_stream import CaptionSource, CaptionStreamConfig
from data_pipeline.contact_sheet import draw_sheet
from data_pipeline.prefetch import first_batches, make_stream
from data_pipeline.tokenizer import Tokenizer
from sora_jax import flops
from sora_jax.config import OptimConfig, TrainConfig, at_least, build_config, build_data, check_sections
from sora_jax.models.captioner import Captioner, CaptionerConfig, Coca, apply, forward_flops
from sora_jax.models.layers import initialise
from sora_jax.parallel import process_rows
from sora_jax.types import Batch, Frozen, LossOutput, ParamGroup, Params, Prepared, Sums, Task

NUM_PREVIEWED = 8
HASH_FACTOR = 1_000_003


@dataclass(frozen=True)
class CaptionerLossConfig:
    """The weights of the two losses: CoCa's are 2 and 1."""

    caption_weight: float = 2.0
    contrastive_weight: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, "config.loss", 0, "caption_weight", "contrastive_weight")


def prepare(config: Mapping[str, Any]) -> Prepared:
    """The task and its data from a run's config. Raises UserError before any model is built."""
    check_sections(config, required=("data", "optim", "train"), optional=("model", "loss"))
    loss = build_config(CaptionerLossConfig, config.get("loss", {}), "config.loss")
    optim = build_config(OptimConfig, config["optim"], "config.optim")
    train = build_config(TrainConfig, config["train"], "config.train")
    path, stream = config["data"]["path"], stream_config(config)
    rows = process_rows(train.batch_rows, train.mesh)
    source = CaptionSource(path, stream, "train", rows)
    manifest, tokenizer = source.reader.manifest, source.tokenizer
    heldout = CaptionSource(path, stream.of_last_stage(), "heldout", rows) if manifest.counts["heldout"] else None
    model = model_config(config.get("model", {}), tokenizer.vocab_size)
    model.grid(*stream.canvas)
    task = make_task(
        model,
        loss,
        optim,
        tokenizer.eos_id,
        preview=make_preview(model, heldout or source, tokenizer),
        fingerprints={"data": manifest.fingerprint, "tokenizer": tokenizer.fingerprint},
    )
    return Prepared(
        task=task,
        train=train,
        make_batches=lambda start, num: make_stream(source, start, num, train.num_workers),
        eval_batches=lambda _: first_batches(heldout, train.eval_batches),
        config=dict(config),
    )


def make_task(
    model: CaptionerConfig, loss: CaptionerLossConfig, optim: OptimConfig, end_id: int, **fields: Any
) -> Task:
    """What a captioner trains, whatever its data; `fields` are the task's others."""
    return Task(
        name="captioner",
        init=lambda key: {"captioner": initialise(lambda rngs: Captioner(model, rngs), key)},
        groups=(ParamGroup("captioner", make_loss(model, loss, end_id), optim),),
        evaluate=make_evaluate(model, end_id),
        flops=lambda batch: flops.TRAINING * batch_flops(model, batch),
        **fields,
    )


def stream_config(config: Mapping[str, Any]) -> CaptionStreamConfig:
    """The canvas and captions from a run's config; the global batch and the seed are the run's own."""
    return build_data(CaptionStreamConfig, config)


def model_config(values: Mapping[str, Any], vocab_size: int) -> CaptionerConfig:
    """`config.model`; the vocabulary comes from the data."""
    return build_config(CaptionerConfig, {**values, "vocab_size": vocab_size}, "config.model")


def make_loss(model: CaptionerConfig, cfg: CaptionerLossConfig, end_id: int):
    """Sum over the captions' tokens of caption_weight x cross-entropy + contrastive_weight x the contrastive loss."""

    def loss(params: Params, frozen: Frozen, batch: Batch, key: jax.Array, row_offset: jax.Array) -> LossOutput:
        captioner = apply(model, params["captioner"])
        sums = measure(captioner, batch, end_id)
        for name in ("is_truncated", "is_unweighted"):
            flags = batch[name].astype(jnp.float32)
            sums[f"captions_{name[3:]}"] = (flags.sum(), jnp.float32(flags.size))
        sums["temperature"] = (1 / captioner.scale(), jnp.float32(1))
        (entropy, tokens), (contrast, rows) = sums["caption_loss"], sums["contrastive_loss"]
        total = cfg.caption_weight * entropy + cfg.contrastive_weight * tokens * contrast / rows
        return LossOutput(total, tokens, sums)

    return loss


def make_evaluate(model: CaptionerConfig, end_id: int):
    """Both losses, and how often the likeliest token is the caption's, and the nearest caption the clip's."""

    def evaluate(params: Params, frozen: Frozen, batch: Batch, key: jax.Array) -> Sums:
        sums = measure(apply(model, params["captioner"]), batch, end_id)
        return {"loss": sums["caption_loss"], **sums}

    return evaluate


def measure(captioner: Captioner, batch: Batch, end_id: int) -> Sums:
    """The losses and accuracies of a batch, as sums."""
    live, targets = caption_mask(batch), batch["text_ids"]
    out = read(captioner, batch, end_id)
    weights, num_tokens = live.astype(jnp.float32), live.sum().astype(jnp.float32)
    entropy = -jnp.take_along_axis(jax.nn.log_softmax(out.logits), targets[..., None], axis=-1)[..., 0]
    right = jnp.argmax(out.logits, axis=-1) == targets
    of_rows, nearest = contrastive(captioner.scale(), out, same_captions(targets))
    num_rows = jnp.float32(len(targets))
    return {
        "caption_loss": (jnp.sum(entropy * weights), num_tokens),
        "token_accuracy": (jnp.sum(right * weights), num_tokens),
        "contrastive_loss": (of_rows.sum(), num_rows),
        "contrastive_accuracy": (nearest.sum().astype(jnp.float32), num_rows),
    }


def read(captioner: Captioner, batch: Batch, end_id: int) -> Coca:
    """The captioner on clips and the tokens before each token of their captions."""
    before = jnp.pad(batch["text_ids"][:, :-1], ((0, 0), (1, 0)), constant_values=end_id)
    return captioner(batch["video"], batch["extents"], before, caption_mask(batch).astype(jnp.int32))


def caption_mask(batch: Batch) -> Bool[Array, "B S"]:
    """Which places hold a caption's tokens."""
    return jnp.arange(batch["text_ids"].shape[1]) < batch["text_lengths"][:, None]


def contrastive(
    scale: Float[Array, ""], out: Coca, same: Bool[Array, "B B"]
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Each row's cross-entropy of its own caption among all, and of its own clip, halved and added; and whether its own
    caption is the nearest one."""
    logits = scale * jnp.einsum("BV,CV->BC", out.clips, out.captions)
    itself = jnp.eye(len(logits), dtype=bool)
    logits = jnp.where(same & ~itself, -jnp.inf, logits)
    of_clips, of_captions = (-jnp.diagonal(jax.nn.log_softmax(logits, axis=axis)) for axis in (1, 0))
    return 0.5 * (of_clips + of_captions), jnp.argmax(logits, axis=1) == jnp.arange(len(logits))


def same_captions(ids: Int[Array, "B S"]) -> Bool[Array, "B B"]:
    """Whether rows have the same caption, by a hash of 32 bits: a rare clash leaves out a pair that is not the same."""
    powers = np.array([pow(HASH_FACTOR, i, 2**32) for i in range(ids.shape[1])], np.uint32)
    hashes = jnp.sum(jnp.asarray(ids, jnp.uint32) * powers, axis=1, dtype=jnp.uint32)
    return hashes[:, None] == hashes[None, :]


def batch_flops(model: CaptionerConfig, batch: Mapping[str, np.ndarray]) -> float:
    """FLOPs of a forward pass over a host's batch: the patches that a clip reaches into, and its caption."""
    patch = np.asarray(model.patch)
    reached = np.asarray(-(-batch["extents"] // patch) * patch)
    sizes = zip(reached.tolist(), batch["text_lengths"].tolist(), strict=True)
    return sum(forward_flops(model, *size, length) for size, length in sizes)


def make_preview(model: CaptionerConfig, source: CaptionSource, tokenizer: Tokenizer):
    """A sheet of clips with the captions that they were given and those that the captioner writes; the same as JSON."""

    @jax.jit
    def write(params: Params, video: jax.Array, extents: jax.Array) -> tuple[jax.Array, jax.Array]:
        captioner = apply(model, params["captioner"])
        return tuple(captioner.caption(video, extents, source.captioned.max_tokens, tokenizer.eos_id))

    def preview(params: Params, frozen: Frozen, directory: Path, step: int) -> list[Path]:
        batch = {name: values[:NUM_PREVIEWED] for name, values in source[0].items() if values.ndim}
        written = texts_of(tokenizer, *write(params, batch["video"], batch["extents"]))
        given = texts_of(tokenizer, batch["text_ids"], batch["text_lengths"])
        frames = [
            video[tuple(map(slice, extent))] for video, extent in zip(batch["video"], batch["extents"], strict=True)
        ]
        sheet, lines = (directory / f"captions_{step:07d}.{ending}" for ending in ("png", "json"))
        pairs = list(zip(given, written, strict=True))
        draw_sheet([(f, f"given: {a}\nwritten: {b}") for f, (a, b) in zip(frames, pairs, strict=True)]).save(sheet)
        lines.write_text(json.dumps([{"given": a, "written": b} for a, b in pairs], indent=1) + "\n")
        return [sheet, lines]

    return preview


def texts_of(tokenizer: Tokenizer, ids: Any, lengths: Any) -> list[str]:
    """The words of each row's first so many ids; the end-of-text id has none."""
    rows = zip(np.asarray(ids), np.asarray(lengths), strict=True)
    return [tokenizer.decode(row[:length].tolist()) for row, length in rows]
