"""What an expander's run would see of a data set: which of its records have a pair of captions that fits.

Nothing is guessed: pairs come from the training stream itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.caption_pairs import PairConfig, PairSource
from data_pipeline.doctor import Looked, examine
from data_pipeline.shards import ShardReader


def examine_pairs(
    directory: Path,
    cfg: PairConfig,
    num_steps: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The report, as `examine_data` has it.

    Raises `UserError` only where there is no data set.
    """
    return examine(ShardReader(directory), cfg, lambda: _run(directory, cfg, num_steps), on_progress)


def _run(directory: Path, cfg: PairConfig, num_steps: int) -> Looked:
    """Raises UserError for what the run's own streams refuse."""
    source = PairSource(directory, cfg)
    if source.reader.manifest.counts["heldout"]:
        PairSource(directory, cfg, "heldout")
    why = dict(source.trained_on())
    clips = sum(not reason for reason in why.values())
    run = {
        "clips": clips,
        "short_source": cfg.short_source,
        "long_source": cfg.long_source,
        "steps_per_epoch": clips / cfg.batch_size,
        "num_steps": num_steps,
        "epochs": num_steps * cfg.batch_size / clips,
        "samples_per_step": cfg.batch_size,
    }
    return run, [{"record": number, "why": reason} for number, reason in why.items() if reason]
