"""Three sizes of a small generator by three budgets on the quickstart's latents: points for a scaling law on a CPU.

    launch/local.sh sweep run --sweep configs/sweeps/quickstart_scaling.py --out runs/scaling
    sora-jax evaluate scaling --sweep runs/scaling --budget 1e13 --out runs/scaling/fit.json

Reads the latents that `make quickstart` leaves in runs/quickstart/latents (elsewhere: --config.data.path=DIR). Every
member's schedule ends with its own budget, so that each is a finished run. Held-out losses fall from 1.41 (the
smallest, 50 steps) to 0.43 (the largest, 800); `benchmarks/scaling_two_cores` has the law and its figure.
"""

import itertools

BASE = "configs/dit_quickstart.py"

COMMON = {
    "model.text.width": 64,
    "model.text.num_heads": 2,
    "optim.warmup_steps": 10,
    "train.batch_rows": 16,
    "train.log_every": 10,
    "train.eval_every": 50,
    "train.eval_batches": 4,
    "train.preview_every": 0,
    "train.checkpoint_every": 50,
}

SIZES = ((32, 2, 2), (64, 3, 2), (128, 4, 4))
BUDGETS = (50, 200, 800)  # 1x, 4x, 16x of each size: the same sweep gives the picture by compute


def get_sweep():
    for (width, depth, num_heads), num_steps in itertools.product(SIZES, BUDGETS):
        yield {
            "model.width": width,
            "model.depth": depth,
            "model.num_heads": num_heads,
            "train.num_steps": num_steps,
        }
