"""How fast a feature network is, as `evaluate` runs it: from pixels in the host's memory to features there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from sora_jax.evaluation.features import FeatureNetwork
from sora_jax.evaluation.protocols import PROTOCOLS, Protocol
from sora_jax.models.feature_files import FeatureWeights, Tensors, expected_shapes, fingerprint_of, sized_kind
from sora_jax.models.videomae import BASE, GIANT, VideoMaeConfig, videomae_shapes

VIDEOMAES = {"giant": GIANT, "base": BASE}
THIN_VIDEOMAE = VideoMaeConfig(width=128, depth=2, mlp_width=512, patch=14)
Clips = Float32[np.ndarray, "N T Y X 3"]


@dataclass(frozen=True)
class Subject:
    """A network as it is measured: by which protocol it is fed, the kind of its weights, how thin it can be."""

    protocol: str
    kind: str
    divisor: int
    thin_side: int


SUBJECTS = {
    "inception": Subject("pytorch-fid", "pytorch-fid", divisor=16, thin_side=107),
    "i3d": Subject("cd-fvd", "cd-fvd", divisor=8, thin_side=64),
    "videomae": Subject("cd-fvd-videomae", "videomae", divisor=1, thin_side=56),
}


def random_weights(network: str, is_thin: bool, videomae: str = "giant", seed: int = 0) -> FeatureWeights:
    """Weights of the published sizes, or of a thin network for tests."""
    subject = SUBJECTS[network]
    if network == "videomae":
        shapes = videomae_shapes(THIN_VIDEOMAE if is_thin else VIDEOMAES[videomae])
    else:
        shapes = expected_shapes(network, subject.divisor if is_thin else 1)
    tensors = draw_tensors(shapes, seed)
    return FeatureWeights(network, sized_kind(subject.kind, tensors), tensors, fingerprint_of(tensors))


def draw_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Kernels that keep a signal's size, and norms of every kind of number."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        drawn = rng.standard_normal(shape, np.float32)
        if name.endswith("variance"):
            drawn = 0.5 + np.abs(drawn)
        elif len(shape) > 1:
            drawn *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            is_scale = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
            drawn = np.float32(is_scale) + np.float32(0.1) * drawn
        tensors[name] = drawn
    return tensors


def as_evaluated(weights: FeatureWeights) -> tuple[FeatureNetwork, Protocol]:
    """The network on one device, in the micro-batches of `evaluate`, and the protocol that it is fed by."""
    protocol = PROTOCOLS[SUBJECTS[weights.network].protocol]
    return FeatureNetwork(weights, protocol, jax.local_devices()[:1]), protocol


def draw_clips(num: int, protocol: Protocol, side: int, seed: int = 0) -> Clips:
    """Noise in the range that the network is fed."""
    x = np.random.default_rng(seed).random((num, protocol.num_frames, side, side, 3), np.float32)
    return x if protocol.network.name == "videomae" else 2 * x - 1


def compare(seconds: dict[str, float], made: dict[str, np.ndarray], num: int) -> dict[str, Any]:
    """Samples a second of each; PyTorch's time over ours, and how far its features are from ours."""
    found: dict[str, Any] = {f"{name}_samples_per_s": num / s for name, s in seconds.items()}
    if "pytorch" not in seconds:
        return found
    difference = float(np.max(np.abs(made["ours"] - made["pytorch"])))
    deviation = float(np.std(made["ours"]))
    return found | {
        "its_time_over_ours": seconds["pytorch"] / seconds["ours"],
        "largest_difference": difference,
        "deviation": deviation,
    }


def features_alone(network: FeatureNetwork) -> Callable[[Clips], Float32[np.ndarray, "N D"]]:
    """The network without its logits."""
    return lambda clips: network(clips)[0][:, 0]
