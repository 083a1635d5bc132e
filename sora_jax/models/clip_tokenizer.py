"""Captions to CLIP's tokens, by the `tokenizer.json` that was published with the weights.

The library `tokenizers` is an extra: only CLIP needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from data_pipeline.errors import UserError
from sora_jax.models.clip import ClipConfig
from sora_jax.models.clip_files import END, START, TOKENIZER


@dataclass(frozen=True)
class Tokens:
    """Ids between a start and an end, padded with ends; `ends` are the places of the first of them.

    `num_truncated` captions were longer than the network's context.
    """

    ids: Int32[np.ndarray, "N S"]
    ends: Int32[np.ndarray, " N"]
    num_truncated: int


class ClipTokenizer:
    """Raises UserError where the library is missing, or `text` is no tokenizer that suits the network."""

    def __init__(self, text: str, config: ClipConfig):
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError("CLIP's tokenizer needs the library tokenizers: pip install 'sora-jax[clip]'") from error
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"CLIP's {TOKENIZER} is damaged ({error}); download it again") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(config.context)
        around, size = [self._tokenizer.token_to_id(word) for word in (START, END)], self._tokenizer.get_vocab_size()
        if self._tokenizer.encode("").ids != around or size > config.vocab_size:
            raise UserError(
                f"CLIP's {TOKENIZER} has {size} tokens and puts {self._tokenizer.encode('').tokens} around a caption, "
                f"the network has {config.vocab_size} and needs {START} and {END}; take the one beside the weights"
            )
        self._end, self.context = around[1], config.context

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """The first tokens of each, the end always among them."""
        encoded = self._tokenizer.encode_batch(list(captions))
        ids = np.full((len(encoded), self.context), self._end, np.int32)
        for row, one in zip(ids, encoded, strict=True):
            row[: len(one.ids)] = one.ids
        return Tokens(
            ids, np.argmax(ids == self._end, 1).astype(np.int32), sum(bool(one.overflowing) for one in encoded)
        )
