"""Training: the step, the optimizers, checkpoints, metrics, and the one loop that every task runs."""
