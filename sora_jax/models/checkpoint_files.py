"""Tensors of I3D from TensorFlow's checkpoints: DeepMind's kinetics-i3d and its TF-Hub module.

A checkpoint is an index and the numbers beside it. TensorFlow's own reader takes them by name; the graph, which lies in
files of its own, is not loaded and nothing is run. TensorFlow is an extra: only these two kinds need it.
"""

from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError

INDEX = ".index"
MODULE = Path("variables", "variables")
PARTS = ("/w", "/b", "/beta", "/moving_mean", "/moving_variance")
"""How the names of its tensors end; others, an optimizer's, are not read."""
FIRST = "Conv3d_1a_7x7/conv_3d/w"
"""The first convolution's name within its scope (`RGB/inception_i3d`, or that with a module's name before it)."""


def read_i3d_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors by their names within I3D's scope, in PyTorch's layout: kernels [out, in, T, Y, X], norms [C].

    `path` is a checkpoint's (`model.ckpt`, with `model.ckpt.index` beside it), a folder with one, or a TF-Hub module.
    Raises UserError where TensorFlow is missing, or there is no such checkpoint or a damaged one.
    """
    prefix = find_checkpoint(path)
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError("TensorFlow's checkpoints need TensorFlow: pip install 'sora-jax[tensorflow]'") from error
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = sorted(reader.get_variable_to_shape_map())
        scope = _scope(names, prefix)
        kept = [name for name in names if name.startswith(scope) and name.endswith(PARTS)]
        return {name.removeprefix(scope): _as_pytorch(name, reader.get_tensor(name)) for name in kept}
    except (tf.errors.OpError, RuntimeError, IndexError, OSError) as error:
        raise UserError(f"the checkpoint {prefix} cannot be read ({error}); download all of its files again") from error


def find_checkpoint(path: Path) -> Path:
    """The path that a checkpoint's files share. Raises UserError where there is none, or several."""
    if path.suffix == INDEX:
        path = path.with_suffix("")
    candidates = [path, path / MODULE]
    if path.is_dir():
        candidates += [index.with_suffix("") for index in sorted(path.glob(f"*{INDEX}"))]
    found = [prefix for prefix in candidates if prefix.with_name(f"{prefix.name}{INDEX}").is_file()]
    if len(found) != 1:
        names = f" ({', '.join(prefix.name for prefix in found)})" if found else ""
        raise UserError(
            f"{path} has {len(found)} checkpoints{names}, but must have 1: name a checkpoint such as model.ckpt, with "
            f"model.ckpt{INDEX} and model.ckpt.data-* beside it, or a TF-Hub module's folder with {MODULE}{INDEX}"
        )
    return found[0]


def _scope(names: list[str], prefix: Path) -> str:
    """What stands before the names of I3D's tensors; of several scopes the one of RGB."""
    scopes = [name.removesuffix(FIRST) for name in names if name.endswith(FIRST)]
    chosen = [scope for scope in scopes if "RGB" in scope] or scopes
    if len(chosen) != 1:
        raise UserError(
            f"the checkpoint {prefix} holds {len(chosen)} tensors that end in {FIRST}, but must hold 1; it has "
            f"{len(names)} ({', '.join(names[:4])}, …)"
        )
    return chosen[0]


def _as_pytorch(name: str, value: np.ndarray) -> np.ndarray:
    if value.ndim == 5 and name.endswith("/w"):
        return np.moveaxis(value, (-1, -2), (0, 1))
    # Sonnet's norms have a length of one in all dims but the last.
    return value.reshape(-1) if value.ndim == 5 and value.shape[:4] == (1, 1, 1, 1) else value
