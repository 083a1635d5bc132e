"""Three sizes of the demo's generator by three budgets: points for a scaling law.

    sora-jax sweep run --engine slurm --sbatch=--gpus-per-node=1 --sweep configs/sweeps/dit_scaling.py \
        --out runs/scaling

One accelerator a member; without Slurm, leave --engine and --sbatch out. Every member's schedule ends with its own
budget, so that each is a finished run. Expected is a held-out loss that falls with size and with budget; not run yet.
"""

import itertools

BASE = "configs/dit_demo.py"

COMMON = {"train.preview_every": 0}

SIZES = ((128, 4, 2), (256, 6, 4), (512, 8, 8))
BUDGETS = (2_000, 4_000, 8_000)


def get_sweep():
    for (width, depth, num_heads), num_steps in itertools.product(SIZES, BUDGETS):
        yield {
            "model.width": width,
            "model.depth": depth,
            "model.num_heads": num_heads,
            "train.num_steps": num_steps,
        }
