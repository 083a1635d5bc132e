"""Captions to token ids: a sentencepiece model with byte fallback, trained on the data set's captions or loaded.

A data set carries its tokenizer as ``tokenizer.model``: the index stores every caption's token count, so text lengths
are known to the packing plan without reading a record. Byte fallback means that no caption is out of vocabulary.
Trained ones are byte-pair models: on the few hundred words of a small data set a unigram model learns only letters (it
seeds its pieces from substrings that occur in two different words), a byte-pair model whole words.
"""

import collections
import hashlib
import io
import random
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from data_pipeline.errors import UserError

NUM_BYTE_PIECES = 260  # 256 bytes and the specials
SMALLEST_VOCAB = 320  # and a few letters
MAX_TRAINING_TEXTS = 1_000_000  # sentencepiece holds its corpus in memory; a sample of this size fixes the vocabulary
MAX_TEXT_CHARS = 8_192


class Tokenizer:
    """A sentencepiece model. Picklable, deterministic; ids are ``int`` in ``[0, vocab_size)``."""

    def __init__(self, model: bytes, where: str = "the tokenizer"):
        """`model`: a serialised sentencepiece model. Raises UserError when it is damaged or has no end piece."""
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except Exception as error:
            raise UserError(f"{where} is not a sentencepiece model ({len(model)} bytes): {error}") from error
        if self._processor.eos_id() < 0:
            raise UserError(
                f"{where} has no end-of-text piece; train or choose one that has (sentencepiece --eos_id=2)"
            )

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a ``.model`` file, or that of a data set. Raises UserError when it is missing or damaged."""
        path = Path(path, "tokenizer.model") if Path(path).is_dir() else Path(path)
        try:
            return cls(path.read_bytes(), where=str(path))
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 8_192, path: str | Path | None = None) -> "Tokenizer":
        """Trains on `texts`, a corpus of any size; a small one gives fewer than `vocab_size` pieces.

        Single-threaded and seeded: the same texts in the same order give the same bytes. Written to `path` if given.
        Raises UserError when `vocab_size` cannot hold the 256 byte pieces.
        """
        if vocab_size < SMALLEST_VOCAB:
            raise UserError(f"vocab_size is {vocab_size}, but bytes and letters alone need {SMALLEST_VOCAB}; raise it")
        tokenizer = cls(_train_model(_sample_texts(texts), vocab_size), where="the trained tokenizer")
        if path is not None:
            tokenizer.save(path)
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Writes the model file."""
        Path(path).write_bytes(self._model)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` without specials: the end-of-text id is appended by the stream."""
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`."""
        return self._processor.DecodeIds([int(i) for i in ids])

    def num_tokens(self, text: str) -> int:
        """Length that the packing plan counts: the ids of `text` and the end of text."""
        return len(self.encode(text)) + 1

    def caption_ids(self, text: str, limit: int = 0) -> list[int]:
        """What a row holds of a caption: its ids and the end of text, cut to `limit` ids in all (0: never)."""
        ids = self.encode(text)
        return [*(ids[: limit - 1] if limit else ids), self.eos_id]

    def num_unlearned(self, ids: Iterable[int]) -> int:
        """How many of `ids` are single bytes, or no piece at all: what the vocabulary has no piece for."""
        return sum(self._processor.IsByte(i) or self._processor.IsUnknown(i) for i in ids)

    @property
    def eos_id(self) -> int:
        return self._processor.eos_id()

    @property
    def vocab_size(self) -> int:
        return self._processor.GetPieceSize()

    @property
    def model_bytes(self) -> bytes:
        return self._model

    @property
    def fingerprint(self) -> str:
        """sha256 of the model file, in hex."""
        return hashlib.sha256(self._model).hexdigest()

    def __getstate__(self) -> bytes:
        return self._model

    def __setstate__(self, model: bytes) -> None:
        self.__init__(model)


def _sample_texts(texts: Iterable[str]) -> list[str]:
    """At most MAX_TRAINING_TEXTS non-empty one-line texts: a seeded reservoir, so memory is bounded."""
    rng = random.Random(0)
    kept: list[str] = []
    seen = 0
    for text in texts:
        line = " ".join(text.split())[:MAX_TEXT_CHARS]
        if not line:
            continue
        seen += 1
        if len(kept) < MAX_TRAINING_TEXTS:
            kept.append(line)
        elif (slot := rng.randrange(seen)) < MAX_TRAINING_TEXTS:
            kept[slot] = line
    return kept


def _train_model(texts: list[str], vocab_size: int) -> bytes:
    """A serialised model. An extra "a" gives even a data set without captions a tokenizer: of bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*_drop_rare_characters(texts, vocab_size), "a"]), model_writer=model,
        model_type="bpe", vocab_size=vocab_size, hard_vocab_limit=False, byte_fallback=True, num_threads=1,
        character_coverage=1.0, max_sentence_length=4 * MAX_TEXT_CHARS, pad_id=0, unk_id=1, eos_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def _drop_rare_characters(texts: list[str], vocab_size: int) -> list[str]:
    """Every kept character must have a piece, so at most half of the vocabulary: the others fall back to bytes."""
    most = (vocab_size - NUM_BYTE_PIECES) // 2
    counts = collections.Counter(char for text in texts for char in text)
    if len(counts) <= most:
        return texts
    kept = set(sorted(counts, key=lambda char: (-counts[char], char))[:most])
    return ["".join(char if char in kept else " " for char in text) for text in texts]
