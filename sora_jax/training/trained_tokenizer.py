"""The tokenizer that a run was trained with, from beside its data."""

from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from sora_jax.training.checkpoint import LoadedRun


def trained_tokenizer(run: Path | str, loaded: LoadedRun, file: Path | str | None = None) -> Tokenizer:
    """The tokenizer of `loaded`, which is the run `run`; `file` says where it is, if the data have moved.

    Raises UserError for another one than the run was trained with.
    """
    path = Path(file or Path(loaded.config["data"]["path"]) / "tokenizer.model")
    found, said = Tokenizer.load(path), loaded.fingerprints["tokenizer"]
    if found.fingerprint != said:
        raise UserError(
            f"{path} is tokenizer {found.fingerprint[:12]}, but {run} was trained with {said[:12]}: say where the data "
            "are that it was trained on"
        )
    return found
