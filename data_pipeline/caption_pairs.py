"""Pairs of a short and a long caption of the same clip, as rows for a small language model that makes long ones.

A row is `end short end long end`, where `end` is the end-of-text id; what is predicted is everything behind the second
one. `PairSource[step]` is a pure function of (data fingerprint, seed, step): every record of the split that has both
captions, in an order of its own each epoch, one whose captions are too long replaced by the next.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from data_pipeline.caption_draw import MAX_LISTED, count_sources, name_of
from data_pipeline.errors import UserError
from data_pipeline.permutation import hash_u64, key_from, permute
from data_pipeline.prefetch import Batch
from data_pipeline.shards import ShardReader
from data_pipeline.stream import load_tokenizer
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.unreadable import Unreadable

MAX_REPLACEMENTS = 64
Ids = list[int]


@dataclass(frozen=True)
class PairConfig:
    """`short_source` and `long_source` wrote the two captions, of up to `short_tokens` and `long_tokens` tokens; longer
    ones are not used. Each means the sources that it would in `caption_draw.py`; of several captions, one is drawn.

    In `swap_rate` of the rows every token that both texts have becomes another one, the same in both: what is asked for
    must be copied, and not guessed from what usually goes with it. Short texts that hold a phrase of `leave_out` are
    not trained on, to see what becomes of prompts that are new.
    """

    batch_size: int
    short_source: str = "synthetic short"
    long_source: str = "synthetic long"
    short_tokens: int = 32
    long_tokens: int = 96
    swap_rate: float = 0.0
    leave_out: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "short_tokens", "long_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 <= self.swap_rate <= 1:
            raise UserError(f"swap_rate is {self.swap_rate}, but must be between 0 and 1")
        if self.short_source == self.long_source:
            raise UserError(f"short_source and long_source are both '{self.short_source}': name two sources")

    @property
    def sources(self) -> tuple[str, str]:
        """The names of both."""
        return self.short_source, self.long_source

    @property
    def row_tokens(self) -> int:
        """Of a row: both texts and the two ends before them."""
        return 2 + self.short_tokens + self.long_tokens


class PairSource:
    """`source[step] -> {"ids", "targets", "segment_ids": int32 [B, S], "loss_mask": float32 [B, S], "num_unreadable"}`.

    B are this host's rows `[lo, hi)` of the global batch; `targets` follow the `ids`, and count where `loss_mask` is 1.
    Clips and latents will do, since only captions are read. Picklable; safe in threads. Raises UserError on
    construction for a split without such pairs, and one whose first pairs are all too long.
    """

    def __init__(
        self, directory: Path | str, cfg: PairConfig, split: str = "train", rows: tuple[int, int] | None = None
    ):
        lo, hi = rows or (0, cfg.batch_size)
        if not 0 <= lo < hi <= cfg.batch_size:
            raise UserError(f"rows [{lo}, {hi}) are not rows of a batch of {cfg.batch_size}")
        self.directory, self.cfg, self.split, self.rows = Path(directory), cfg, split, (lo, hi)
        self.reader = ShardReader(directory)
        self.tokenizer = load_tokenizer(self.directory, self.reader.manifest)
        self._records = self._records_with_both()
        self._key = key_from("pairs", self.reader.manifest.fingerprint, cfg.seed, split)
        self._words = _words_of(self.tokenizer)
        self._lock = threading.Lock()
        self._unreadable = Unreadable(self.directory)
        self._row(0, lo)

    def __reduce__(self) -> tuple[Any, ...]:
        return PairSource, (self.directory, self.cfg, self.split, self.rows)

    def __getitem__(self, step: int) -> Batch:
        """This host's rows of `step`."""
        drawn = [self._row(int(step), row) for row in range(*self.rows)]
        pairs, failures = zip(*drawn, strict=True)
        rows = [self._arrays(*pair) for pair in pairs]
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {**arrays, "num_unreadable": np.asarray(sum(failures), np.int32)}

    def short_texts(self) -> Iterator[str]:
        """The different short captions of the split, in their order; each record is read when its turn comes."""
        seen: set[str] = set()
        for record in self._records:
            captions = self._captions(int(record))
            for text in captions[0] if captions else ():
                if text not in seen:
                    seen.add(text)
                    yield text

    def _row(self, step: int, row: int) -> tuple[tuple[Ids, Ids], int]:
        """(ids of the pair in its turn, how many records before it could not be read)."""
        position, failures = step * self.cfg.batch_size + row, 0
        tries = min(MAX_REPLACEMENTS, len(self._records))
        for replaced in range(tries):
            epoch, turn = divmod(position + replaced, len(self._records))
            number = int(self._records[permute(self._key, epoch, len(self._records), turn)[0]])
            rng = np.random.Generator(np.random.Philox(key=[self._key, int(hash_u64(self._key, step, row, replaced))]))
            try:
                pair = self._pair(number, rng)
            except UserError as error:
                self._unreadable.count(number, error)
                failures += 1
                continue
            self._unreadable.count(number, None)
            if pair is not None:
                return pair, failures
        raise UserError(
            f"{self.directory}: {tries} {self.split} records in a row, of {len(self._records)} with both captions, "
            f"have none by '{self.cfg.short_source}' of at most {self.cfg.short_tokens} tokens with one by "
            f"'{self.cfg.long_source}' of at most {self.cfg.long_tokens}: raise short_tokens or long_tokens"
        )

    def trained_on(self) -> Iterator[tuple[int, str]]:
        """Each record of the split, and why it is never trained on; "" where it is. Reads one record at a time."""
        both = set(self._records.tolist())
        for number in self.reader.index.select(self.split).tolist():
            try:
                found = self._captions(number) if number in both else None
            except UserError as error:
                yield number, str(error)
                continue
            if found is None:
                yield number, "it has no caption by each of the two sources, or leave_out names it"
            else:
                yield number, "" if all(self._fitting(found)) else "a caption by one of the two sources is too long"

    def _pair(self, number: int, rng: np.random.Generator) -> tuple[Ids, Ids] | None:
        """The ids of one pair of a record that fits, or None."""
        found = self._captions(number)
        if found is None or not all(fitting := self._fitting(found)):
            return None
        short, long = (ids[rng.integers(len(ids))] for ids in fitting)
        swaps = self.split == "train" and rng.random() < self.cfg.swap_rate
        return self._swapped(short, long, rng) if swaps else (short, long)

    def _fitting(self, found: tuple[list[str], list[str]]) -> list[list[Ids]]:
        """The ids of those texts by each source that are short enough."""
        limits = self.cfg.short_tokens, self.cfg.long_tokens
        return [
            [ids for ids in map(self.tokenizer.encode, texts) if 0 < len(ids) <= limit]
            for texts, limit in zip(found, limits, strict=True)
        ]

    def _swapped(self, short: Ids, long: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        """Both texts with other words for the tokens that they share."""
        shared = sorted(set(short) & set(long))
        others = dict(zip(shared, rng.choice(self._words, len(shared)).tolist(), strict=True))
        return [others.get(token, token) for token in short], [others.get(token, token) for token in long]

    def _captions(self, number: int) -> tuple[list[str], list[str]] | None:
        """A record's texts by each source, or None where one has none."""
        with self._lock:
            record = self.reader.read(number)
        short, long = (
            [caption.text for caption in record.captions if name_of(self.cfg.sources, caption.source) == name]
            for name in self.cfg.sources
        )
        if self.split == "train":
            short = [text for text in short if not any(phrase in text for phrase in self.cfg.leave_out)]
        return (short, long) if short and long else None

    def _arrays(self, short: Ids, long: Ids) -> dict[str, np.ndarray]:
        """One row, padded."""
        end = self.tokenizer.eos_id
        text = [end, *short, end, *long, end]
        row = {name: np.zeros(self.cfg.row_tokens, np.int32) for name in ("ids", "targets", "segment_ids")}
        mask, count = np.zeros(self.cfg.row_tokens, np.float32), len(text) - 1
        row["ids"][:count], row["targets"][:count], row["segment_ids"][:count] = text[:-1], text[1:], 1
        mask[len(short) + 1 : count] = 1
        return {**row, "loss_mask": mask}

    def _records_with_both(self) -> Int64[np.ndarray, " n"]:
        """The record numbers of the split that have a caption by each source, by the index alone."""
        index, records = self.reader.index, self.reader.index.select(self.split)
        if not len(records):
            raise UserError(f'{self.directory} has no records in its "{self.split}" split')
        if index.caption_source is None:
            raise UserError(
                f"pairs are of captions by '{self.cfg.short_source}' and '{self.cfg.long_source}', but index.npz of "
                f"{self.directory} does not say who wrote the captions: the data set was built before that was kept. "
                "Build it again (`sora-jax encode` for latents)"
            )
        has_both = np.ones(len(index), bool)
        for name in self.cfg.sources:
            is_by = np.asarray([name_of(self.cfg.sources, source) == name for source in index.caption_sources], bool)
            num_before = np.concatenate([[0], np.cumsum(is_by[index.caption_source])])
            has_both &= np.diff(num_before[index.caption_offsets]) > 0
        if not has_both[records].any():
            found = [f"{source!r} ({n})" for source, n in count_sources(index, self.split).items()][:MAX_LISTED]
            raise UserError(
                f"{self.directory}: none of {len(records)} {self.split} records has a caption by "
                f"'{self.cfg.short_source}' and one by '{self.cfg.long_source}'; it has captions by "
                f"{', '.join(found) or 'nobody'}"
            )
        return records[has_both[records]]


def _words_of(tokenizer: Tokenizer) -> Int64[np.ndarray, " n"]:
    """The ids that are words, or parts of words: no specials, no bytes."""
    ids = range(tokenizer.vocab_size)
    return np.asarray([i for i in ids if not tokenizer.num_unlearned([i]) and tokenizer.decode([i])], np.int64)
