"""`sora-jax evaluate --metric simulation`: whether videos of the world `simulation` keep what must stay true.

    sora-jax data synth --world simulation --clips 2100 --out D/videos       # and data build, train, sample as usual
    sora-jax evaluate --metric simulation --generated SAMPLES --real CLIPS --out simulation.json

Permanence behind a bar, one rigid body under an orbiting camera, a bounce, a collision, a count, a painted line, a look
away and back: for each kind the share of samples that hold, of real clips, and by chance of forgetful ones (frames of
real clips whose second half is another clip's). Without --generated or --run: of real clips and by chance alone.
"""

import argparse
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.commands.shared import shown
from sora_jax.evaluation.inputs import read_real, read_sample, read_samples
from sora_jax.evaluation.simulation_probes import KINDS, forgetful, rates


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The shares; without samples, of real clips and by chance alone. Raises UserError for captions of no kind."""
    real = read_real(args.real, args.split, args.num_real, args.max_frames)
    groups, result = {"real": rates(real)}, {}
    if args.generated is not None:
        entries = read_samples(args.generated)
        reading = shown(entries, len(entries), "reading samples")
        samples = [(entry["prompt"], read_sample(args.generated, entry)) for entry in reading]
        groups = {"generated": rates(samples)} | groups
        result = {"generated": str(args.generated), "num_samples": len(samples)}
    for name, where in (("generated", args.generated), ("real", args.real)):
        if not groups.get(name, True):
            raise UserError(f"no caption of {where} begins with one of {', '.join(KINDS)}: render --world simulation")
    chances = rates(forgetful(real))
    scores = {}
    for kind in next(iter(groups.values())):
        shares = {name: group[kind].as_dict() for name, group in groups.items() if kind in group}
        scores[kind] = {"chance": chances[kind].rate if kind in chances else None} | shares
    return result | {"scores": scores}
