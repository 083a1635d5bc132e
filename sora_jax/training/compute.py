"""How large a run is and what it took: parameters, tokens, and C = 6 N D FLOPs, read from its folder.

N are all parameters of the newest checkpoint, D the live tokens of the steps (Hoffmann et al. 2022; attention's
products are left out, as they do).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sora_jax.objectives.data_stages import capacity_until, one_stage
from sora_jax.training.checkpoint import CHECKPOINTS, committed_steps, find_checkpoint, saved_shapes
from sora_jax.training.metrics import read_metrics
from sora_jax.training.run_directory import CONFIG

FLOPS = 6.0
"""For each parameter and token: a multiplication and an addition, forward and twice backward."""


@dataclass(frozen=True)
class Spent:
    """`tokens[i]` are those of the first `steps[i]` steps. Both are empty for a run whose rows hold no tokens."""

    parameters: float
    steps: tuple[float, ...]
    tokens: tuple[float, ...]

    def tokens_at(self, step: float) -> float | None:
        """Live tokens until `step`; beyond the last row at the pace of the whole run."""
        if not self.tokens:
            return None
        if step > self.steps[-1]:
            return self.tokens[-1] * step / self.steps[-1]
        return float(np.interp(step, (0.0, *self.steps), (0.0, *self.tokens)))

    def flops_at(self, step: float) -> float | None:
        """6 N D until `step`; None where N or D is not known."""
        tokens = self.tokens_at(step)
        return None if tokens is None or not self.parameters else FLOPS * self.parameters * tokens


def read_spent(run: Path) -> Spent:
    """What `run` took, step by step; `parameters` is 0 where no checkpoint says how many there are."""
    config = json.loads((run / CONFIG).read_text())
    parameters = count_parameters(run) if committed_steps(run / CHECKPOINTS) else 0.0
    rows = [row for row in read_metrics(run) if row["kind"] == "train"]
    is_staged = config.get("train", {}).get("task") == "diffusion"  # other tasks' stages change no row
    if not rows or "row_tokens" not in (one_stage(config) if is_staged else config).get("data", {}):
        return Spent(parameters, (), ())
    steps, tokens = _live_tokens(rows, capacity_until(config, [row["step"] for row in rows]))
    return Spent(parameters, steps, tokens)


def count_parameters(run: Path) -> float:
    """Numbers in the newest checkpoint's parameters. Raises UserError where there is no checkpoint."""
    shapes = saved_shapes(find_checkpoint(run), "params")
    return float(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)))


def _live_tokens(
    rows: Sequence[dict[str, Any]], capacity: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Steps, and the tokens of all steps until each: what they hold (`capacity`), less the padding that was measured; a
    row without it counts as the mean of the others."""
    known = [row["padding"] for row in rows if row.get("padding") is not None]
    mean = sum(known) / max(len(known), 1)
    steps, padding = (
        np.array([row["step"] for row in rows], float),
        np.array([mean if row.get("padding") is None else row["padding"] for row in rows], float),
    )
    tokens = np.cumsum(np.diff(np.asarray(capacity, float), prepend=0.0) * (1 - padding))
    return tuple(steps.tolist()), tuple(tokens.tolist())
