"""How often videos show what their captions say: each claim judged by the probes, shares with intervals, and chance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sora_jax.evaluation.probes import Observation, Video, judge, match, probe_video
from sora_jax.evaluation.prompts import ATTRIBUTES, Claim, Vocabulary, parse_prompt
from sora_jax.evaluation.scores import Share, share

EVERYTHING = "all"  # every claim of a caption holds


@dataclass(frozen=True)
class Judged:
    """A caption's claims, the object matched with each, and which attributes of it hold."""

    prompt: str
    claims: tuple[Claim, ...]
    objects: tuple[Observation | None, ...]
    verdicts: tuple[dict[str, bool], ...]

    @property
    def obeyed(self) -> bool:
        return all(all(verdict.values()) for verdict in self.verdicts)

    def as_rows(self) -> list[dict[str, object]]:
        """One row an attribute of an object: {"attribute", "claimed", "observed", "correct"}."""
        return [
            {
                "attribute": name,
                "claimed": claim.items()[name],
                "observed": None if seen is None else getattr(seen, name),
                "correct": correct,
            }
            for claim, seen, verdict in zip(self.claims, self.objects, self.verdicts, strict=True)
            for name, correct in verdict.items()
        ]


def judge_video(prompt: str, frames: Video, vocabulary: Vocabulary) -> Judged:
    """What the probes see in `frames` beside what `prompt` claims."""
    claims = parse_prompt(prompt)
    objects = match(claims, probe_video(frames, vocabulary))
    return Judged(prompt, claims, tuple(objects), tuple(judge(claims, objects)))


def tally(judged: Iterable[Judged]) -> dict[str, Share]:
    """The share of claims that hold, for each attribute, and of captions that are obeyed in all of them.

    Captions that make no claim are left out; an attribute that nobody claims has a share of nothing.
    """
    judged = [one for one in judged if one.claims]
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    shares = {name: share(verdict[name] for verdict in verdicts if name in verdict) for name in ATTRIBUTES}
    return shares | {EVERYTHING: share(one.obeyed for one in judged)}


def chance(prompts: Sequence[tuple[Claim, ...]], world: Sequence[tuple[Claim, ...]]) -> dict[str, float | None]:
    """What a generator would score that draws from the world without reading its prompt.

    Every prompt is compared with every scene of the world, given by its own claims; None where nothing is claimed.
    """
    held = dict.fromkeys((*ATTRIBUTES, EVERYTHING), 0)
    total = dict.fromkeys(held, 0)
    for claims in filter(None, prompts):
        for scene in world:
            verdicts = judge(claims, match(claims, scene))
            outcomes = [(name, correct) for verdict in verdicts for name, correct in verdict.items()]
            outcomes.append((EVERYTHING, all(correct for _, correct in outcomes)))
            for name, correct in outcomes:
                held[name] += correct
                total[name] += 1
    return {name: held[name] / total[name] if total[name] else None for name in held}
