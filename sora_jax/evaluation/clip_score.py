"""How well videos fit their captions: CLIPScore (Hessel et al. 2021) of every frame, averaged.

A frame's score is `WEIGHT` max(cos, 0) of the angle between its vector and the caption's; a video's is the mean of its
frames', a set's the mean of its videos'. Hessel et al. multiply by 2.5 and begin each caption with "A photo depicts";
here it is 100 and the caption alone, as torchmetrics has it, which clamps at 0 the mean of all, not each frame's.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from sora_jax.evaluation.features import read_ahead
from sora_jax.evaluation.frechet import Interval
from sora_jax.evaluation.media import MediaSet
from sora_jax.evaluation.micro_batches import MicroBatches, device_mesh
from sora_jax.evaluation.resizing import pil_bicubic_levels
from sora_jax.models.clip import DEVIATION, MEAN, picture_vectors, text_vectors
from sora_jax.models.clip_files import ClipWeights, clip_params
from sora_jax.models.clip_tokenizer import ClipTokenizer, Tokens
from sora_jax.types import Device

MICRO_BATCH = {"cpu": 8, "gpu": 64, "tpu": 64}


@dataclass(frozen=True)
class ClipProtocol:
    """How the score is computed. `max_frames`: only the first so many frames of a video; 0: all."""

    max_frames: int = 0
    weight: float = 100.0
    prefix: str = ""
    resize: str = "Pillow's bicubic on 8 bits, shorter side, centre"
    mean: tuple[float, ...] = MEAN
    deviation: tuple[float, ...] = DEVIATION

    @property
    def name(self) -> str:
        frames = f"first {self.max_frames} frames" if self.max_frames else "all frames"
        return f"{self.weight:g} max(cos, 0), mean over {frames}"

    @property
    def fingerprint(self) -> str:
        """The hash of all that the protocol says."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


class ClipNetwork:
    """Both towers with their weights on devices: all of this process by default."""

    def __init__(self, weights: ClipWeights, devices: Sequence[Device] | None = None):
        config, params, mesh = weights.config, clip_params(weights), device_mesh(devices)
        micro_batch = MICRO_BATCH[mesh.devices.flat[0].platform]
        self.fingerprint, self.side = weights.fingerprint, config.side
        self.name = f"ViT of width {config.vision.width}, patches of {config.patch}, {config.side} pixels"
        self.tokenize = ClipTokenizer(weights.tokenizer, config)
        self._pictures = MicroBatches(
            lambda params, x: (picture_vectors(config, params, x),), params["vision"], micro_batch, mesh
        )
        self._captions = MicroBatches(
            lambda params, *text: (text_vectors(config, params, *text),), params["text"], micro_batch, mesh
        )

    def pictures(self, frames: UInt8[np.ndarray, "N Y X 3"]) -> Float[np.ndarray, "N P"]:
        """Unit vectors of frames that `fit` has cut."""
        return self._pictures(frames)[0]

    def captions(self, tokens: Tokens) -> Float[np.ndarray, "N P"]:
        """Unit vectors of captions."""
        return self._captions(tokens.ids, tokens.ends)[0]


def fit(frames: UInt8[np.ndarray, "T Y X 3"], side: int) -> UInt8[np.ndarray, "T {side} {side} 3"]:
    """The shorter side to `side`, the other one in proportion and cut down; then the centre, as published."""
    height, width = frames.shape[1:3]
    shorter = min(height, width)
    height, width = side * height // shorter, side * width // shorter
    top, left = (height - side) // 2, (width - side) // 2
    return pil_bicubic_levels(frames, height, width)[:, top : top + side, left : left + side]


@dataclass(frozen=True)
class Fits:
    """Scores of videos in their order: with their own captions, and with the next different caption of the set (None
    where all are the same), which is what videos get that do not follow their captions."""

    own: Float[np.ndarray, " N"]
    exchanged: Float[np.ndarray, " N"] | None
    num_frames: int
    num_truncated: int


def score_videos(
    network: ClipNetwork,
    media: MediaSet,
    captions: Sequence[str],
    protocol: ClipProtocol,
    batch: int = 16,
    show: Callable = lambda x, total: x,
) -> Fits:
    """Each video of `media` beside its caption; `batch` videos are read at a time."""
    tokens = network.tokenize([protocol.prefix + caption for caption in captions])
    texts, others = network.captions(tokens), _others(captions)
    cut = dataclasses.replace(media, read=lambda i, most: fit(media.read(i, most), network.side))
    scores, num_frames = np.zeros((2, len(media))), 0
    numbers = iter(range(len(media)))
    for videos in show(read_ahead(cut, protocol.max_frames or None, batch), -(-len(media) // batch)):
        vectors = network.pictures(np.concatenate(videos))
        num_frames += len(vectors)
        ends = np.cumsum([len(video) for video in videos])
        for frames in np.split(vectors, ends[:-1]):
            i = next(numbers)
            pair = texts[[i, others[i]]].astype(np.float64)
            scores[:, i] = protocol.weight * np.maximum(frames.astype(np.float64) @ pair.T, 0).mean(0)
    all_alike = len(set(captions)) == 1
    return Fits(scores[0], None if all_alike else scores[1], num_frames, tokens.num_truncated)


def _others(captions: Sequence[str]) -> list[int]:
    """For each caption the number of the next one that differs; its own where none does."""
    num, found = len(captions), list(range(len(captions)))
    for k in reversed(range(2 * num - 1)):  # from the back, twice around: equal neighbours share theirs
        i, j = k % num, (k + 1) % num
        if captions[j] != captions[i]:
            found[i] = j
        elif found[j] != j:
            found[i] = found[j]
    return found


def interval_of(scores: Float[np.ndarray, " N"], num: int, seed: int = 0) -> Interval | None:
    """How far the mean would move with other videos: drawn anew with replacement, `num` times (Efron 1979).

    None for fewer than two resamples or videos.
    """
    if num < 2 or len(scores) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(scores), (num, len(scores)))
    deviation, mean = float(np.std(scores[drawn].mean(1), ddof=1)), float(scores.mean())
    return Interval(deviation, max(0.0, mean - 1.96 * deviation), mean + 1.96 * deviation, num)
