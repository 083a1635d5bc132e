"""A run directory belongs to one config; fields that did not exist yet mean their defaults."""

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sora_jax.training.run_directory import check_config

CONFIG = {"train": {"task": "toy", "num_steps": 5, "seed": 3}, "optim": {"learning_rate": 0.1}, "preview": {"width": 8}}


def changed(section: str, **fields: object) -> dict:
    return {**CONFIG, section: {**CONFIG[section], **fields}}


@pytest.mark.parametrize(
    "given",
    [
        changed("train", num_steps=9),
        changed("preview", width=16),
        changed("train", microbatches=1),  # named now, its default before
        changed("optim", weight_decay=0.0),
    ],
)
def test_length_pictures_and_defaults_may_differ(given):
    check_config(CONFIG, given, Path("run"))


@pytest.mark.parametrize(
    "given, says",
    [
        (changed("train", seed=4), "config.train.seed was 3 and is 4"),
        (changed("optim", weight_decay=0.1), "config.optim.weight_decay was 0.0 and is 0.1"),
    ],
)
def test_everything_else_is_another_run(given, says):
    with pytest.raises(UserError, match=says):
        check_config(CONFIG, given, Path("run"))
