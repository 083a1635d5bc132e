"""Whether long prompts say what their short ones say: the claims of both, read back from their words."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.caption_draw import is_meant
from data_pipeline.shards import ShardReader
from sora_jax.evaluation.caption_accuracy import COUNT, compare
from sora_jax.evaluation.inputs import clip_numbers
from sora_jax.evaluation.prompts import ATTRIBUTES, parse_prompt
from sora_jax.evaluation.scores import share

BAR = "grey bar"
"""What the embedded worlds hide objects behind; no claim about an object."""


def short_prompts(reader: ShardReader, split: str, source: str, most: int) -> list[str]:
    """Up to `most` different captions by `source`, in the order of the split's records."""
    return list(dict.fromkeys(_captions(reader, split, source)))[:most]


def _captions(reader: ShardReader, split: str, source: str) -> Iterator[str]:
    for number in clip_numbers(reader, split):
        record = reader.read(int(number))
        yield from (caption.text for caption in record.captions if is_meant(source, caption.source))


def kept(short: str, long: str) -> dict[str, bool]:
    """Of each attribute that the short prompt claims whether the long one claims it of the same object, in any order;
    whether as many objects are named ("count"), and whether a bar stays one ("bar")."""
    compared = compare(parse_prompt(short), long)
    found = {COUNT: compared.is_counted, "bar": (BAR in short) == (BAR in long)}
    for name in ATTRIBUTES:
        verdicts = [verdict[name] for verdict in compared.verdicts if name in verdict]
        if verdicts:
            found[name] = all(verdicts)
    return found


def judge_expansions(short: Sequence[str], long: Sequence[str]) -> dict[str, Any]:
    """Shares of prompts that keep each attribute, and all of them; every pair, and those that keep not all first.

    Prompts that make no claim are left out.
    """
    pairs = [pair for pair in zip(short, long, strict=True) if parse_prompt(pair[0])]
    rows = [{"prompt": a, "expanded": b, "kept": kept(a, b)} for a, b in pairs]
    names = (*ATTRIBUTES, COUNT, "bar")
    scores = {name: share(row["kept"][name] for row in rows if name in row["kept"]).as_dict() for name in names}
    scores["all"] = share(all(row["kept"].values()) for row in rows).as_dict()
    words = [len(text.split()) for text in long]
    return {
        "num_prompts": len(rows),
        "mean_words": round(sum(words) / max(1, len(words)), 2),
        "changed": sum(a != b for a, b in pairs),
        "scores": scores,
        "samples": sorted(rows, key=lambda row: all(row["kept"].values())),
    }
