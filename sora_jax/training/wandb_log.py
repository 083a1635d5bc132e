"""The rows of the metrics in Weights & Biases too, with `config.train.wandb_project`; `pip install sora-jax[wandb]`.

What wandb itself reads from the environment holds: WANDB_MODE=offline writes into the run directory only, and
`wandb sync` sends that later. The id of the run (`run.json`) is its id there, so every start continues it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sora_jax.training.run_directory import CONFIG, RUN


class WandbLog:
    """One run in the project `project`, open until `close`. Raises UserError where wandb is missing or refuses."""

    def __init__(self, run_dir: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "config.train.wandb_project is set, but wandb is not installed: pip install 'sora-jax[wandb]', or "
                "leave wandb_project empty"
            ) from error
        try:
            self._run = wandb.init(
                project=project,
                dir=str(run_dir),
                id=json.loads((run_dir / RUN).read_text())["id"],
                name=run_dir.resolve().name,
                config=json.loads((run_dir / CONFIG).read_text()),
                resume="allow",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"wandb does not start ({' '.join(str(error).split())}); set WANDB_MODE=offline to keep its files in "
                f"{run_dir}, or leave config.train.wandb_project empty"
            ) from error
        self._run.define_metric("*", step_metric="step")  # a step that is done again is a point again

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Adds a row; it is sent in the background."""
        self._run.log({"step": step, **{f"{kind}/{name}": value for name, value in values.items()}})

    def close(self) -> None:
        """Ends what is open; the run can be continued."""
        self._run.finish()
