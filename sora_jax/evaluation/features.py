"""Clips to features: a network on all devices of this process (`micro_batches.py`).

Features of the real side are kept on disk, by a hash of everything that they depend on.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data_pipeline.errors import UserError
from sora_jax.evaluation.media import MediaSet
from sora_jax.evaluation.micro_batches import MicroBatches, device_mesh
from sora_jax.evaluation.protocols import Protocol, preprocess
from sora_jax.models.embedded import NETWORKS, Embedded, to_params
from sora_jax.models.feature_files import FeatureWeights, divisor_of, network_params
from sora_jax.models.i3d import MIN_FRAMES, I3d, I3dConfig
from sora_jax.models.inception import Inception, InceptionConfig
from sora_jax.models.layers import definition
from sora_jax.models.videomae import VideoMae, check_frames, config_of
from sora_jax.types import Device

SMALL = {"cpu": 16, "gpu": 256, "tpu": 256}
MICRO_BATCH = {
    "inception": {"cpu": 4, "gpu": 32, "tpu": 32},
    "i3d": {"cpu": 1, "gpu": 8, "tpu": 8},
    "videomae": {"cpu": 1, "gpu": 8, "tpu": 8},
    **dict.fromkeys(NETWORKS, SMALL),
}
READERS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureSet:
    """Features of the clips in their order, and a classifier's logits where the network has them.

    `num_short` clips had fewer frames than the protocol takes and are left out. Each of the others has
    `rows_per_clip` rows: its frames, where a network of images sees all of them, else one.
    """

    features: Float32[np.ndarray, "N D"]
    logits: Float32[np.ndarray, "N classes"]
    num_short: int
    rows_per_clip: int = 1


class FeatureNetwork:
    """A network with its weights on devices: all of this process by default."""

    def __init__(self, weights: FeatureWeights, protocol: Protocol, devices: Sequence[Device] | None = None):
        if weights.network != protocol.network.name:
            raise UserError(f"protocol {protocol.name} needs {protocol.network.name}, --weights is {weights.network}")
        self.fingerprint, self.kind, self.protocol = weights.fingerprint, weights.kind, protocol
        self.mesh = device_mesh(devices)
        self.micro_batch = MICRO_BATCH[weights.network][self.mesh.devices.flat[0].platform]
        is_embedded = weights.network in NETWORKS
        params = to_params(weights.tensors) if is_embedded else network_params(weights, protocol.network.eps)
        self._network = MicroBatches(_forward(weights, protocol), params, self.micro_batch, self.mesh)

    def __call__(self, clips: Float32[np.ndarray, "N T Y X 3"]) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, rows, D] and logits [N, classes] of preprocessed clips."""
        features, logits = self._network(clips)
        return features, logits


def _forward(weights: FeatureWeights, protocol: Protocol) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
    """(params, clips [N, T, Y, X, 3]) -> features [N, rows, D] and logits; I3D's logits are its features."""

    def without_logits(network: Any, clips: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = network(clips)
        return found[:, None], jnp.zeros((len(clips), 0), found.dtype)

    if weights.network in NETWORKS:
        embedded = definition(lambda rngs: Embedded(NETWORKS[weights.network], rngs))
        return lambda params, clips: (nnx.merge(embedded, params).features(clips), jnp.zeros((len(clips), 0)))
    if weights.network == "videomae":
        config = config_of(weights.tensors, protocol.network.eps)
        tokens = definition(lambda rngs: VideoMae(config, rngs))
        return lambda params, clips: without_logits(nnx.merge(tokens, params), clips)
    divisor = divisor_of(weights)
    if weights.network == "inception":
        image_graph = definition(lambda rngs: Inception(InceptionConfig(divisor), rngs))

        def both(params: Any, clips: jax.Array) -> tuple[jax.Array, jax.Array]:
            features, logits = nnx.merge(image_graph, params)(clips[:, 0])
            return features[:, None], logits

        return both
    graph = definition(lambda rngs: I3d(I3dConfig(protocol.network.fixed_padding, divisor), rngs))
    return lambda params, clips: without_logits(nnx.merge(graph, params), clips)


def extract(
    network: FeatureNetwork, media: MediaSet, batch: int = 16, show: Callable = lambda x, total: x
) -> FeatureSet:
    """Features of every clip that is long enough; `batch` clips are read at a time.

    Raises UserError where a clip cannot be read, or fewer than two are long enough.
    """
    protocol = network.protocol
    needed = protocol.needed_frames
    if protocol.network.name == "i3d" and protocol.num_frames < MIN_FRAMES:
        raise UserError(f"I3D needs at least {MIN_FRAMES} frames, the protocol has {protocol.num_frames}")
    if protocol.network.name == "videomae":
        check_frames(protocol.num_frames)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    longest = 0
    for frames in show(read_ahead(media, needed, batch), -(-len(media) // batch)):
        longest = max(longest, *(len(clip) for clip in frames))
        clips = [preprocess(protocol, clip) for clip in frames if len(clip) >= needed]
        if clips:
            parts.append(network(np.stack(clips)))
    found = sum(len(part[0]) for part in parts)
    if found < 2:
        raise UserError(
            f"{found} of {len(media)} clips in {media.source} have the {needed} frames that protocol "
            f"{protocol.name} takes (the longest of them has {longest}); give longer ones, or fewer --frames"
        )
    features, logits = (np.concatenate([part[k] for part in parts]) for k in range(2))
    return FeatureSet(features.reshape(-1, features.shape[-1]), logits, len(media) - found, features.shape[1])


def read_ahead(media: MediaSet, most: int | None, batch: int) -> Iterator[list[np.ndarray]]:
    """The clips' first frames, `batch` clips at a time, the next ones being read meanwhile."""
    with ThreadPoolExecutor(READERS) as pool:
        starts = range(0, len(media), batch)
        ahead = [pool.submit(media.read, i, most) for i in range(min(batch, len(media)))]
        for start in starts:
            current = ahead
            following = range(start + batch, min(start + 2 * batch, len(media)))
            ahead = [pool.submit(media.read, i, most) for i in following]
            yield [future.result() for future in current]


def cached_features(
    network: FeatureNetwork, media: MediaSet, folder: Path | None, batch: int, show: Callable = lambda x, total: x
) -> FeatureSet:
    """`extract`, or what it gave before for the same clips, protocol, network and platform. None: without a cache."""
    if folder is None:
        return extract(network, media, batch, show)
    path = folder / f"{cache_key(network, media)}.safetensors"
    if path.is_file():
        try:
            held = load_file(path)
            return FeatureSet(held["features"], held["logits"], *map(int, held["counts"]))
        except (OSError, SafetensorError, KeyError) as error:
            logger.warning("%s is damaged (%s): computed anew", path, error)
    found = extract(network, media, batch, show)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    counts = np.array([found.num_short, found.rows_per_clip])
    save_file({"features": found.features, "logits": found.logits, "counts": counts}, partial)
    partial.replace(path)
    return found


def cache_key(network: FeatureNetwork, media: MediaSet) -> str:
    """The hash of what features depend on: clips, steps and frames, network, and the kind of device."""
    protocol = network.protocol
    plain = {
        "clips": media.fingerprint,
        "steps": [repr(step) for step in protocol.steps],
        "frames": [protocol.num_frames, protocol.stride],
        "network": [network.fingerprint, repr(protocol.network)],
        "device": network.mesh.devices.flat[0].device_kind,
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
