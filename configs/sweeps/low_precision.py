"""One small generator on the quickstart's latents with bfloat16 activations over float32 parameters, and the same with
weight products in int8, in fp8, and with the first moment in bfloat16: does the loss stay where it is?

    launch/local.sh sweep run --sweep configs/sweeps/low_precision.py --out runs/low_precision
    sora-jax sweep plot --out runs/low_precision --file runs/low_precision/sweep.png

Reads the latents that `make quickstart` leaves in runs/quickstart/latents (elsewhere: --config.data.path=DIR).
"""

BASE = "configs/dit_quickstart.py"

COMMON = {
    "model.width": 128,
    "model.depth": 4,
    "model.dtype": "bfloat16",
    "train.batch_rows": 16,
    "train.num_steps": 300,
    "train.log_every": 10,
    "train.eval_every": 50,
    "train.eval_batches": 4,
    "train.preview_every": 0,
    "train.checkpoint_every": 100,
}


def get_sweep():
    for matmul, moments in (("full", "float32"), ("int8", "float32"), ("fp8", "float32"), ("full", "bfloat16")):
        yield {"model.matmul": matmul, "optim.moment_dtype": moments}
