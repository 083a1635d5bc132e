"""LPIPS's weights from the files that others published: heads, and the backbones of torchvision or of Keras.

Nothing is fetched. A folder holds both files of a backbone under their published names; `WHERE` says where they come
from. A published checksum that is known, or that the file's name carries as torchvision's names do, is compared.
Keras's SqueezeNet expects blue, green, red in 0..255 minus Caffe's means: that is folded into its first convolution.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load_file

from data_pipeline.errors import UserError
from sora_jax.config import choose
from sora_jax.models.lpips import SCALE, SHIFT, weight_shapes
from sora_jax.models.torch_files import read_tensors

BACKBONE_FILES = {
    "alex": ("alexnet-*.pth", "alexnet-*.safetensors"),
    "vgg": ("vgg16-*.pth", "vgg16-*.safetensors"),
    "squeeze": ("squeezenet1_1-*.pth", "squeezenet1_1-*.safetensors", "squeezenet1.1_*.h5"),
}
"""Where several are there, the first counts."""
SHA256 = {
    "lpips_v0.1_alex_heads.pth": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "lpips_v0.1_squeeze_heads.pth": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    "lpips_v0.1_vgg_heads.pth": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "squeezenet1.1_imagenet_notop_keras.h5": "2d935d8c102ad1232484a77da8e6fbdf3ff4ab608974a0d8b6283115ffff204f",
}
HASHED_NAME = re.compile(r"-([0-9a-f]{8})\.\w+$")
WHERE = (
    "the heads are lpips/weights/v0.1/{net}.pth of github.com/richzhang/PerceptualSimilarity, the backbone is "
    "torchvision's (download.pytorch.org/models); docs/autoencoder.md names them all"
)
CAFFE_MEAN = (123.68, 116.779, 103.939)
"""Of red, green and blue in 0..255."""
KERAS_FIRE = {"features.0": "conv1"} | {
    f"features.{torch}": f"fire{keras}" for torch, keras in zip((3, 4, 6, 7, 9, 10, 11, 12), range(2, 10), strict=True)
}


@dataclass(frozen=True)
class Lpips:
    """A backbone with its heads. `fingerprint` names both files' contents."""

    net: str
    weights: dict[str, Float32[np.ndarray, "..."]]
    fingerprint: str


def load_lpips(net: str, folder: Path | str) -> Lpips:
    """The weights of a backbone from a folder. Raises UserError for an unknown backbone, a missing or wrong file."""
    patterns = choose(BACKBONE_FILES, net, "the LPIPS backbone")
    heads_path = _find(Path(folder), (f"lpips_*{net}_heads.pth",), f"LPIPS's heads for '{net}'", net)
    backbone_path = _find(Path(folder), patterns, f"the backbone '{net}'", net)
    digests = [_checked_digest(path) for path in (heads_path, backbone_path)]
    backbone = _read(backbone_path)
    heads = read_tensors(heads_path)
    weights: dict[str, np.ndarray] = {}
    for name, expected in weight_shapes(net).items():
        of_head = name.startswith("head")
        found = _head(heads, name) if of_head else _backbone_weight(backbone, name)
        if found is None or found.shape != expected:
            what = "missing" if found is None else f"of shape {found.shape}"
            path = heads_path if of_head else backbone_path
            raise UserError(f"{path} is not what '{net}' needs: {name} is {what}, expected {expected}; {_where(net)}")
        weights[name] = found
    if backbone_path.suffix == ".h5":
        weights |= _for_rgb(weights["features.0.kernel"], weights["features.0.bias"])
    fingerprint = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return Lpips(net, {name: np.asarray(w, np.float32) for name, w in weights.items()}, fingerprint)


def _find(folder: Path, patterns: tuple[str, ...], what: str, net: str) -> Path:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            return path
    raise UserError(f"{folder} holds no {' or '.join(patterns)} ({what}): {_where(net)}")


def _where(net: str) -> str:
    return WHERE.format(net=net)


def _checked_digest(path: Path) -> str:
    """The file's SHA-256. Raises UserError where it is not the one published under this name."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    named = HASHED_NAME.search(path.name)
    expected = SHA256.get(path.name) or (named.group(1) if named else "")
    if not found.startswith(expected):
        raise UserError(f"{path} has SHA-256 {found}, expected {expected}…: it is damaged or not what its name says")
    return found


def _read(path: Path) -> dict[str, np.ndarray]:
    """Torch's names and layouts, (out, in, height, width), whatever the file's format."""
    if path.suffix == ".h5":
        return _read_keras(path)
    try:
        return load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}): download it again") from error


def _read_keras(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    back = {keras: torch for torch, keras in KERAS_FIRE.items()}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        parts = name.split("/")
        if isinstance(item, h5py.Dataset) and parts[0] in back:
            inner = f".{parts[1]}" if parts[0] != "conv1" else ""
            value = np.asarray(item)
            layer = f"{back[parts[0]]}{inner.replace('squeeze1x1', 'squeeze')}"
            if parts[-1].startswith("kernel"):
                found[f"{layer}.weight"] = value.transpose(3, 2, 0, 1)
            else:
                found[f"{layer}.bias"] = value

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no Keras file of weights ({error}): download it again") from error
    return found


def _backbone_weight(tensors: dict[str, np.ndarray], name: str) -> np.ndarray | None:
    """A weight in JAX's layout, (height, width, in, out)."""
    layer, _, kind = name.rpartition(".")
    if kind == "bias":
        return tensors.get(f"{layer}.bias")
    found = tensors.get(f"{layer}.weight")
    return found if found is None or found.ndim != 4 else found.transpose(2, 3, 1, 0)


def _head(heads: dict[str, np.ndarray], name: str) -> np.ndarray | None:
    """A head `[1, channels, 1, 1]` as `[channels]`."""
    head = heads.get(f"lin{name.removeprefix('head_')}.model.1.weight")
    return head if head is None or head.shape != (1, head.size, 1, 1) else head.reshape(-1)


def _for_rgb(kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """The first convolution of Keras's network for LPIPS's scaled red, green, blue z.

    It expects blue, green, red of p - mean with p = 127.5 (SCALE z + SHIFT + 1); it has no padding, so this is exact.
    """
    rgb = kernel[:, :, ::-1].astype(np.float64)
    offset = 127.5 * (np.asarray(SHIFT) + 1) - np.asarray(CAFFE_MEAN)
    return {
        "features.0.kernel": rgb * (127.5 * np.asarray(SCALE))[:, None],
        "features.0.bias": bias + np.einsum("yxio,i->o", rgb, offset),
    }
