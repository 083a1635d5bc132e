"""A run's parameters as one safetensors file, and back: for other programs, and to hand a model on.

The tensors are named by their paths (`dit/blocks/mlp_in/kernel`), in the dtypes that they were trained in. The file's
header holds one JSON text, `sora_jax`: config, step, fingerprints and code of the run, which parameters these are
(`ema` or `params`), the paths as lists, and the SHA-256 of all tensors; and the SHA-256 of that text,
`sora_jax_sha256`: safetensors itself checks neither.
"""

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import load_file, save_file

from data_pipeline.errors import UserError, from_os_error
from sora_jax.parallel import path_of
from sora_jax.training.checkpoint_io import IMPORTED_FROM, begin_save, load_parts, read_metadata, saved_shapes
from sora_jax.training.manifest import find_verified, write_manifest
from sora_jax.training.run_directory import open_run
from sora_jax.training.run_lock import RunLock
from sora_jax.training.step_folders import CHECKPOINTS, commit, discard_save, staging
from sora_jax.training.tiers import known_steps

HEADER, HEADER_DIGEST = "sora_jax", "sora_jax_sha256"
RUN_FIELDS = ("config", "fingerprints", "code")
FIELDS = {
    "step": int,
    "parameters": str,
    "paths": dict,
    "sha256": str,
    "config": dict,
    "fingerprints": dict,
    "code": str,
}


def export_run(run_dir: Path, out: Path, step: int | None = None, *, ema: bool = True) -> dict[str, Any]:
    """Writes the EMA (or raw) parameters of a checkpoint to the file `out`. Returns what its header says, in short.

    Raises UserError for a damaged checkpoint and a full disk; an existing file is replaced only by a whole one.
    """
    path = find_verified(run_dir, step)
    metadata, part = read_metadata(path), "ema" if ema else "params"
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    tree = load_parts(path, {part: jax.tree.map(lambda x: x.update(sharding=host), saved_shapes(path, part))})[part]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    tensors = {path_of(keys): leaf for keys, leaf in leaves}
    about = {
        "step": int(path.name),
        "parameters": part,
        "paths": {path_of(keys): [_plain_key(key) for key in keys] for keys, _ in leaves},
        "sha256": _digest(tensors),
        **{name: metadata[name] for name in RUN_FIELDS},
    }
    header = json.dumps(about)
    temporary = out.with_name(f"{out.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={HEADER: header, HEADER_DIGEST: _digest_text(header)})
        temporary.replace(out)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise from_os_error(error if isinstance(error, OSError) else OSError(str(error)), f"writing {out}") from error
    size = sum(tensor.nbytes for tensor in tensors.values())
    return {"out": str(out), "step": about["step"], "parameters": part, "tensors": len(tensors), "bytes": size}


def import_run(file: Path, run_dir: Path) -> dict[str, Any]:
    """Makes `run_dir` a run whose only checkpoint is what `file` holds, to sample from or to `--init_from`.

    The tensors are its parameters and their EMA. Raises UserError for a file that `export_run` has not written, one
    whose header or tensors are not what was written, and a run directory that has checkpoints.
    """
    about, tensors = _read(file)
    if known_steps(run_dir):
        raise UserError(f"{run_dir} is a run with checkpoints of its own; choose another --out")
    params: dict[str, Any] = {}
    for name, keys in about["paths"].items():
        branch = params
        for key in keys[:-1]:
            branch = branch.setdefault(key, {})
        branch[keys[-1]] = tensors[name]
    step, directory = about["step"], run_dir / CHECKPOINTS
    metadata = {**{n: about[n] for n in RUN_FIELDS}, IMPORTED_FROM: str(file)}
    try:
        with RunLock(run_dir):
            open_run(run_dir, metadata, has_checkpoint=False)
            directory.mkdir(exist_ok=True)
            discard_save(directory, step)
            parts = {"params": params, "ema": params, "data": {"step": step}}
            begin_save(staging(directory, step), parts, metadata).result()
            write_manifest(staging(directory, step))
            commit(directory, step)
    except OSError as error:
        raise from_os_error(error, f"importing {file} into {run_dir}") from error
    return {"run": str(run_dir), "step": step, "parameters": about["parameters"], "tensors": len(tensors)}


def _read(file: Path) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """(what the header says, the tensors), verified."""
    if not file.is_file():
        raise UserError(f"there is no file {file}; sora-jax checkpoint export writes one")
    try:
        with safe_open(file, framework="flax") as opened:
            metadata = opened.metadata() or {}
        about = _read_header(file, metadata)
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is no whole safetensors file ({error}); export it again") from error
    found, written = _digest(tensors), about["sha256"]
    if found != written:
        raise UserError(f"the tensors of {file} have sha256 {found}, but {written} was written; export it again")
    if tensors.keys() != about["paths"].keys():
        raise UserError(
            f"the header of {file} names {len(about['paths'])} paths of {len(tensors)} tensors; export it again"
        )
    return about, tensors


def _read_header(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `export_run` said of the file, from the metadata that safetensors keeps. Raises UserError if it is not what
    was written."""
    header, written = metadata.get(HEADER), metadata.get(HEADER_DIGEST)
    if header is None:
        raise UserError(f"{file} has no '{HEADER}' in its header: sora-jax checkpoint export has not written it")
    if written is None:
        raise UserError(
            f"{file} has no '{HEADER_DIGEST}' in its header, so that it cannot be verified; export it again"
        )
    if (found := _digest_text(header)) != written:
        raise UserError(f"the header of {file} has sha256 {found}, but {written} was written; export it again")
    try:
        about = json.loads(header)
        wrong = [name for name, kind in FIELDS.items() if not isinstance(about[name], kind)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the header of {file} is of another program or version ({error!r}); export it again"
        ) from error
    if not wrong:
        wrong += ["step"] if about["step"] < 0 else []
        wrong += [f"path of {name}" for name, keys in about["paths"].items() if not (keys and isinstance(keys, list))]
    if wrong:
        raise UserError(f"the header of {file} has no usable {', '.join(wrong)}; export it again")
    return about


def _plain_key(key: Any) -> str | int:
    """What a key of `jax.tree_util` names: JSON keeps whether it was a number."""
    return key.key if isinstance(key, jax.tree_util.DictKey) else key.idx


def _digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(tensors: Mapping[str, jax.Array]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(np.ascontiguousarray(np.asarray(tensor)).view(np.uint8).data)
    return digest.hexdigest()
