"""How often a captioner's captions of the synthetic worlds are right: each claim beside the clip's own captions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from data_pipeline.records import Caption
from sora_jax.evaluation.obedience import EVERYTHING
from sora_jax.evaluation.probes import judge
from sora_jax.evaluation.prompts import ATTRIBUTES, Claim, parse_prompt
from sora_jax.evaluation.scores import Share, share

COUNT = "count"


@dataclass(frozen=True)
class Compared:
    """A clip's true claims beside the written ones: of each true object, which attributes the caption has right."""

    truth: tuple[Claim, ...]
    written: tuple[Claim, ...]
    verdicts: tuple[dict[str, bool], ...]

    @property
    def is_counted(self) -> bool:
        """As many objects as there are."""
        return len(self.truth) == len(self.written)

    @property
    def is_exact(self) -> bool:
        """The same claims in any order, and no other: not even a direction where nothing moves."""
        return sorted(self.truth, key=str) == sorted(self.written, key=str)


def compare(truth: Sequence[Claim], written: str) -> Compared:
    """A written caption beside the true claims; objects are paired as is best for the caption."""
    claims = parse_prompt(written)
    candidates = [*claims, *[None] * (len(truth) - len(claims))]
    pairings = (judge(truth, order) for order in permutations(candidates, len(truth)))
    best = max(pairings, key=lambda verdicts: sum(sum(verdict.values()) for verdict in verdicts))
    return Compared(tuple(truth), claims, tuple(best))


def accuracy(compared: Iterable[Compared]) -> dict[str, Share]:
    """Of all true claims of an attribute, the share that the captions have right; of all clips, the share that are
    counted right, and in which all is right."""
    compared = list(compared)
    verdicts = [verdict for one in compared for verdict in one.verdicts]
    shares = {name: share(verdict[name] for verdict in verdicts if name in verdict) for name in ATTRIBUTES}
    shares[COUNT] = share(one.is_counted for one in compared)
    return shares | {EVERYTHING: share(one.is_exact for one in compared)}


def true_claims(captions: Sequence[Caption]) -> tuple[Claim, ...]:
    """What the first of a clip's captions that claims anything says; none where none does."""
    return next(filter(None, (parse_prompt(caption.text) for caption in captions)), ())
