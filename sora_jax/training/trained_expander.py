"""The expander of prompts that an expander's run has come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from sora_jax.objectives.expander import ExpanderConfig, expand, expander_config
from sora_jax.training.checkpoint import load_params
from sora_jax.training.fingerprint import fingerprint_of
from sora_jax.training.trained_tokenizer import trained_tokenizer


@dataclass(frozen=True)
class TrainedExpander:
    """The EMA of a run's newest checkpoint, with the tokenizer of its data."""

    config: ExpanderConfig
    params: Any
    tokenizer: Tokenizer
    step: int

    @classmethod
    def from_run(
        cls, run: Path | str, step: int | None = None, tokenizer: Path | str | None = None
    ) -> "TrainedExpander":
        """The run in the folder `run`; `tokenizer` says where the file is, if its data have moved since training.

        Raises UserError for a run of something else, and for another tokenizer.
        """
        loaded = load_params(run, step)
        if "expander" not in loaded.params:
            raise UserError(f"{run} is no expander's run: it trained {', '.join(loaded.params)}")
        found = trained_tokenizer(run, loaded, tokenizer)
        config = expander_config(loaded.config, found.vocab_size)
        return cls(config, loaded.params["expander"], found, loaded.step)

    def expand(self, prompts: Sequence[str]) -> list[str]:
        """A long prompt for each short one; what the expander cannot make longer stays as it is."""
        return expand(self.config, self.params, self.tokenizer, prompts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights, the tokenizer and the config."""
        return fingerprint_of(self.params, self.config, self.tokenizer.fingerprint)
