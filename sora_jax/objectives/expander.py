"""The expander task: a small language model that continues a short prompt with a long one that says the same and more.

Trained on pairs of captions of the same clips (`caption_pairs.py`), so that a generator that was trained on long
captions is asked in their words: what Sora's report and DALL·E 3 (Betker et al. 2023) do with a large language model.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data_pipeline.caption_pairs import PairConfig, PairSource
from data_pipeline.prefetch import first_batches, make_stream
from data_pipeline.tokenizer import Tokenizer
from sora_jax import flops
from sora_jax.config import OptimConfig, TrainConfig, build_config, build_data, check_sections, choose
from sora_jax.models.layers import DTYPES, definition, initialise
from sora_jax.models.text_decoder import Generated, TextDecoder, TextDecoderConfig, forward_flops, generate
from sora_jax.parallel import process_rows
from sora_jax.types import Batch, Frozen, LossOutput, ParamGroup, Params, Prepared, Sums, Task

ROWS = 32
"""Prompts that are expanded at once, always so many: what becomes of one does not depend on the others."""
NUM_PREVIEWS = 12

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpanderConfig:
    """The network, the dtype of its activations, and how long prompts may be."""

    decoder: TextDecoderConfig
    short_tokens: int
    long_tokens: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        choose(DTYPES, self.dtype, "config.model.dtype")


def prepare(config: Mapping[str, Any]) -> Prepared:
    """The task and its data from a run's config. Raises UserError before any model is built."""
    check_sections(config, required=("data", "model", "optim", "train"), optional=())
    optim = build_config(OptimConfig, config["optim"], "config.optim")
    train = build_config(TrainConfig, config["train"], "config.train")
    pairs, path = pair_config(config), Path(config["data"]["path"])
    rows = process_rows(train.batch_rows, train.mesh)
    source = PairSource(path, pairs, "train", rows)
    manifest = source.reader.manifest
    heldout = PairSource(path, pairs, "heldout", rows) if manifest.counts["heldout"] else None
    cfg = expander_config(config, source.tokenizer.vocab_size)
    task = replace(
        make_task(cfg, optim),
        preview=make_preview(cfg, heldout or source),
        fingerprints={"data": manifest.fingerprint, "tokenizer": source.tokenizer.fingerprint},
    )
    return Prepared(
        task=task,
        train=train,
        make_batches=lambda start, num: make_stream(source, start, num, train.num_workers),
        eval_batches=lambda _: first_batches(heldout, train.eval_batches),
        config=dict(config),
    )


def pair_config(config: Mapping[str, Any]) -> PairConfig:
    """The pairs from a run's config; the global batch and the seed are the run's own."""
    return build_data(PairConfig, config)


def expander_config(config: Mapping[str, Any], vocab_size: int) -> ExpanderConfig:
    """The network from a run's config; the size of the vocabulary comes from the data."""
    pairs, fields = pair_config(config), dict(config["model"])
    dtype = fields.pop("dtype", "float32")
    decoder = build_config(TextDecoderConfig, {"vocab_size": vocab_size, **fields}, "config.model")
    return ExpanderConfig(decoder, pairs.short_tokens, pairs.long_tokens, dtype)


def make_task(cfg: ExpanderConfig, optim: OptimConfig) -> Task:
    """What an expander trains, whatever its data."""
    return Task(
        name="expander",
        init=lambda key: {"expander": initialise(lambda rngs: TextDecoder(cfg.decoder, cfg.dtype, rngs), key)},
        groups=(ParamGroup("expander", make_loss(cfg), optim),),
        evaluate=make_evaluate(cfg),
        flops=lambda batch: flops.TRAINING * sum(forward_flops(cfg.decoder, n) for n in _lengths(batch)),
    )


def make_loss(cfg: ExpanderConfig) -> Callable[..., LossOutput]:
    """Sum of the cross-entropy of the long texts' tokens, their ends included."""

    def loss(params: Params, frozen: Frozen, batch: Batch, key: jax.Array, row_offset: jax.Array) -> LossOutput:
        total, correct, weight = _losses(cfg, params, batch)
        live = jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32)
        size = jnp.asarray(batch["segment_ids"].size, jnp.float32)
        return LossOutput(total, weight, {"accuracy": (correct, weight), "padding": (size - live, size)})

    return loss


def make_evaluate(cfg: ExpanderConfig) -> Callable[..., Sums]:
    """Held-out cross-entropy of a token in nats, and how often the likeliest is the right one."""

    def evaluate(params: Params, frozen: Frozen, batch: Batch, key: jax.Array) -> Sums:
        total, correct, weight = _losses(cfg, params, batch)
        return {"loss": (total, weight), "accuracy": (correct, weight)}

    return evaluate


def _losses(cfg: ExpanderConfig, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over the tokens that count: of cross-entropy, of right ones, of all."""
    logits = nnx.merge(decoder_definition(cfg), params["expander"])(batch["ids"], batch["segment_ids"])
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    correct = (jnp.argmax(logits, axis=-1) == batch["targets"]).astype(jnp.float32)
    mask = batch["loss_mask"]
    return jnp.sum(entropy * mask), jnp.sum(correct * mask), jnp.sum(mask)


@functools.cache
def decoder_definition(cfg: ExpanderConfig) -> Any:
    """The network without its parameters; traced once for each config."""
    return definition(lambda rngs: TextDecoder(cfg.decoder, cfg.dtype, rngs))


def make_preview(cfg: ExpanderConfig, source: PairSource) -> Callable[[Params, Frozen, Path, int], list[Path]]:
    """A text file with short prompts of held-out clips and what becomes of them."""

    def preview(params: Params, frozen: Frozen, directory: Path, step: int) -> list[Path]:
        prompts = list(islice(source.short_texts(), NUM_PREVIEWS))
        longer = expand(cfg, params["expander"], source.tokenizer, prompts)
        path = directory / f"expanded_{step:07d}.txt"
        lines = (f"{short}\n    {long}\n" for short, long in zip(prompts, longer, strict=True))
        path.write_text("".join(lines), encoding="utf-8")
        return [path]

    return preview


def expand(cfg: ExpanderConfig, params: Any, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """The likeliest long prompt for each short one. One that is empty or too long to be short, or whose long one does
    not end, stays as it is, which is logged."""
    short = {number: tokenizer.encode(prompt) for number, prompt in enumerate(prompts)}
    numbers = [number for number, ids in short.items() if 0 < len(ids) <= cfg.short_tokens]
    found, end = list(prompts), tokenizer.eos_id
    for first in range(0, len(numbers), ROWS):
        batch = numbers[first : first + ROWS]
        ids, lengths = np.full((ROWS, cfg.short_tokens + 2), end, np.int32), np.ones(ROWS, np.int32)
        for row, number in enumerate(batch):
            text = [end, *short[number], end]
            ids[row, : len(text)], lengths[row] = text, len(text)
        longer = jax.device_get(_generate(cfg, params, ids, lengths, end))
        for row, number in enumerate(batch):
            if 0 < longer.lengths[row] < cfg.long_tokens:
                found[number] = tokenizer.decode(longer.ids[row, : longer.lengths[row]].tolist())
    kept = [prompt for prompt, long in zip(prompts, found, strict=True) if prompt and prompt == long]
    if kept:
        logger.warning("%d of %d prompts stay as they are, such as '%s'", len(kept), len(prompts), kept[0][:60])
    return found


@functools.partial(jax.jit, static_argnums=(0, 4))
def _generate(cfg: ExpanderConfig, params: Any, ids: jax.Array, lengths: jax.Array, end: int) -> Generated:
    decoder = nnx.merge(decoder_definition(cfg), params)
    return generate(decoder, ids, lengths, None, cfg.long_tokens, end)


def _lengths(batch: Mapping[str, np.ndarray]) -> list[int]:
    return [int(n) for n in np.asarray(batch["segment_ids"]).sum(1)]
