"""A small generator on the quickstart's latents at six learning rates: which is best, and where training breaks.

    launch/local.sh sweep run --sweep configs/sweeps/quickstart_learning_rate.py --out runs/learning_rate
    sora-jax sweep table --out runs/learning_rate
    sora-jax sweep plot --out runs/learning_rate --file runs/learning_rate/sweep.png

Reads the latents that `make quickstart` leaves in runs/quickstart/latents (elsewhere: --config.data.path=DIR).
Meant for minutes on two CPU cores in all six; expected is a held-out loss that falls, then rises with the rate.
"""

BASE = "configs/dit_quickstart.py"

COMMON = {
    "model.width": 64,
    "model.depth": 3,
    "model.num_heads": 2,
    "model.text.width": 64,
    "model.text.num_heads": 2,
    "train.num_steps": 200,
    "train.batch_rows": 16,
    "train.log_every": 5,
    "train.eval_every": 100,
    "train.preview_every": 0,
    "train.checkpoint_every": 50,
}


def get_sweep():
    for learning_rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        yield {"optim.learning_rate": learning_rate}
