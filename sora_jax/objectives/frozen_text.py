"""The frozen text encoder of a generator's run (`config.model.text_encoder`): in the step, or cached with the data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.caption_features import FeaturesManifest
from data_pipeline.errors import UserError
from data_pipeline.stream import StreamConfig
from data_pipeline.tokenizer import Tokenizer
from sora_jax.config import build_config
from sora_jax.models.t5 import T5Config
from sora_jax.models.t5_files import T5Weights, TextEncoderSource, find_tokenizer, load_t5
from sora_jax.models.text_encoder import TextEncoderConfig
from sora_jax.types import Frozen


@dataclass(frozen=True)
class FrozenText:
    """What a step reads of the encoder, what only a preview does, and the fingerprint that a run records."""

    of_step: Frozen = field(default_factory=dict)
    of_preview: Frozen = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)


def text_encoder_config(model: Mapping[str, Any]) -> TextEncoderSource | None:
    """`config.model.text_encoder`, if there is one."""
    values = model.get("text_encoder")
    return None if values is None else build_config(TextEncoderSource, values, "config.model.text_encoder")


def cached_width(stream: StreamConfig, text: TextEncoderConfig | T5Config) -> int:
    """The width of the cached features that rows bring, 0 for none. Raises UserError for a trained encoder's."""
    if not stream.text_features:
        return 0
    if not isinstance(text, T5Config):
        raise UserError(
            "config.data.text_features is on, but config.model has no text_encoder: name the one that the captions "
            "were encoded with"
        )
    return text.width


def frozen_text(
    model: Mapping[str, Any],
    tokenizer: Tokenizer,
    data: Path,
    features: FeaturesManifest | None,
    width: int,
    has_preview: bool,
) -> FrozenText:
    """The encoder that `config.model` names, which makes features of `width` values if `features` are cached; then it
    is loaded only by a process that makes previews.

    Raises UserError unless `data` was tokenized for it and the features are its own.
    """
    source = text_encoder_config(model)
    if source is None:
        return FrozenText()
    if features is None:
        encoder = load_text_encoder(source, tokenizer, data)
        return FrozenText({"text_encoder": encoder.params}, {}, {"text_encoder": encoder.fingerprint})
    check_tokenizer(source, tokenizer, data)
    made_by = features.text_encoder_fingerprint
    if width != features.width:
        raise UserError(
            f"the text encoder {source.path} makes features of {width} values, but those beside {data} have "
            f"{features.width}: name the encoder that made them, or encode the captions again"
        )
    encoder = load_text_encoder(source, tokenizer, data) if has_preview else None
    if encoder is not None and encoder.fingerprint != made_by:
        raise UserError(
            f"the text encoder {source.path} is {encoder.fingerprint[:12]}, but the features beside {data} are of "
            f"{made_by[:12]}: name the encoder that made them, or encode the captions again"
        )
    return FrozenText({}, {} if encoder is None else {"text_encoder": encoder.params}, {"text_encoder": made_by})


def load_text_encoder(source: TextEncoderSource, tokenizer: Tokenizer, data: Path) -> T5Weights:
    """A frozen encoder from its folder. Raises UserError unless `data` was tokenized for it."""
    check_tokenizer(source, tokenizer, data)
    loaded = load_t5(Path(source.path), source.dtype)
    if tokenizer.vocab_size > loaded.config.vocab_size:
        raise UserError(
            f"the tokenizer of {source.path} has {tokenizer.vocab_size} pieces, but the text encoder embeds "
            f"{loaded.config.vocab_size}; they do not belong together"
        )
    return loaded


def check_tokenizer(source: TextEncoderSource, tokenizer: Tokenizer, data: Path) -> None:
    """Raises UserError unless `data`, whose tokenizer is given, was tokenized for the encoder."""
    path = find_tokenizer(Path(source.path))
    published = Tokenizer.load(path)
    if published.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{data} was tokenized with {tokenizer.fingerprint[:12]}, but the text encoder's {path} is "
            f"{published.fingerprint[:12]}; build the data with `sora-jax data build --tokenizer {path}`"
        )
