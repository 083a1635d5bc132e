"""What published FID and FVD numbers mean, exactly: every protocol by its name.

A score is comparable only with scores of the same protocol: the resize, the crop, the rounding, the range of values,
the network's variant, the frames, the number of samples, the covariance's divisor and the way to its square root are
all part of it. A protocol is data; `preprocess` does what its steps say, in their order, in float32.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from data_pipeline.errors import UserError
from sora_jax.config import choose
from sora_jax.evaluation.resizing import pil_bicubic, tf1_bilinear, torch_antialiased, torch_bilinear
from sora_jax.models.embedded import KIND, NUM_FRAMES, SIDE

RESIZES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "tf1-bilinear": tf1_bilinear,
    "torch-bilinear": torch_bilinear,
    "torch-bilinear-antialiased": torch_antialiased,
    "pil-bicubic": pil_bicubic,
}
LEVELS = np.float32(255)


@dataclass(frozen=True)
class Linear:
    """multiply * x / divide + add, in this order."""

    multiply: float = 1.0
    divide: float = 1.0
    add: float = 0.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.float32(self.multiply) * x / np.float32(self.divide) + np.float32(self.add)


@dataclass(frozen=True)
class Clip:
    """To 0..255."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x, 0, LEVELS)


@dataclass(frozen=True)
class Truncate:
    """From [0, 1] to whole levels of 0..255, cut off, not rounded: a level that float32 misses by a little is lost."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x * LEVELS).astype(np.uint8).astype(np.float32)


@dataclass(frozen=True)
class Resize:
    """To `side` pixels a side: stretched, or the shorter side to `side` (the other rounded up) and the centre kept."""

    method: str
    side: int
    crop: bool = False

    def __call__(self, x: np.ndarray) -> np.ndarray:
        resize = RESIZES[self.method]
        if not self.crop:
            return resize(x, self.side, self.side)
        height, width = x.shape[1:3]
        scale = self.side / min(height, width)
        if height < width:
            height, width = self.side, math.ceil(width * scale)
        else:
            height, width = math.ceil(height * scale), self.side
        top, left = (height - self.side) // 2, (width - self.side) // 2
        return resize(x, height, width)[:, top : top + self.side, left : left + self.side]


Step = Linear | Clip | Truncate | Resize


@dataclass(frozen=True)
class Network:
    """A feature network's variant. `weights` are the kinds of files (`convert-weights --kind`) of the published one."""

    name: str
    weights: tuple[str, ...]
    eps: float = 1e-3
    fixed_padding: bool = False


@dataclass(frozen=True)
class Protocol:
    """How a published score is computed.

    `num_frames` and `stride`: a video gives its first `num_frames` frames, each `stride`-th; shorter ones are left out.
    `num_real` and `num_generated`: at most so many samples, None for all. `ddof` is subtracted from the number of
    samples to divide the covariance. `root` says how the trace of its root is taken, `root_offset` what is added to the
    diagonals where that is not finite. `published` is how many samples papers take, below which a score is
    biased; 0: none do.
    """

    name: str
    metric: str
    network: Network
    steps: tuple[Step, ...]
    ddof: int
    root: str
    root_offset: float = 0.0
    num_frames: int = 1
    stride: int = 1
    num_real: int | None = None
    num_generated: int | None = None
    published: int = 2048

    @property
    def side(self) -> int:
        """Pixels a side that reach the network."""
        return [step.side for step in self.steps if isinstance(step, Resize)][-1]

    @property
    def needed_frames(self) -> int:
        """As many a video must have, at least."""
        return self.num_frames * self.stride

    @property
    def fingerprint(self) -> str:
        """The hash of all that the protocol says."""
        plain = dataclasses.asdict(self) | {"steps": [repr(step) for step in self.steps]}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def with_frames(self, num_frames: int) -> "Protocol":
        """The same with another number of frames, which its name says."""
        if num_frames == self.num_frames:
            return self
        return dataclasses.replace(self, name=f"{self.name}, {num_frames} frames", num_frames=num_frames)


UNIT, SIGNED = Linear(divide=255), Linear(multiply=2, add=-1)
AROUND_128 = (Linear(add=-128), Linear(divide=128))
TFHUB_WEIGHTS = ("stylegan-v", "tfhub-i3d")
"""The TorchScript file holds TF-Hub's weights."""
TORCHSCRIPT_I3D = Network("i3d", TFHUB_WEIGHTS, fixed_padding=True)
STATE_DICT_I3D = Network("i3d", ("cd-fvd",), eps=1e-5)
VIDEOMAE = Network("videomae", ("videomae",), eps=1e-6)
STYLEGAN_V = Protocol(
    "stylegan-v",
    "fvd",
    TORCHSCRIPT_I3D,
    (Linear(divide=127.5, add=-1), Resize("torch-bilinear", 224)),
    ddof=0,
    root="sqrtm",
    num_frames=16,
    num_real=2048,
    num_generated=2048,
)
CD_FVD = Protocol(
    "cd-fvd",
    "fvd",
    STATE_DICT_I3D,
    (
        UNIT,
        Resize("torch-bilinear-antialiased", 256, crop=True),
        Truncate(),
        Resize("torch-bilinear", 224),
        Linear(2, 255, -1),
    ),
    ddof=0,
    root="sqrtm",
    num_frames=16,
    num_generated=2048,
)
TORCH_FIDELITY = Protocol(
    "torch-fidelity",
    "fid",
    Network("inception", ("torch-fidelity", "pytorch-fid", "nvidia-inception")),
    (Resize("tf1-bilinear", 299), *AROUND_128),
    ddof=1,
    root="eigenvalues",
    published=50_000,
)
SYNTH = Protocol(
    "synth-fvd",
    "synth-fvd",
    Network("synth-video", (KIND,)),
    (Resize("torch-bilinear-antialiased", SIDE), Linear(divide=127.5, add=-1)),
    ddof=1,
    root="symmetric",
    num_frames=NUM_FRAMES,
    published=0,
)
CLEAN_FID = Protocol(
    "clean-fid",
    "fid",
    Network("inception", ("nvidia-inception", "pytorch-fid", "torch-fidelity")),
    (Resize("pil-bicubic", 299), Clip(), *AROUND_128),
    ddof=1,
    root="sqrtm",
    root_offset=1e-6,
    published=50_000,
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "google",
            "fvd",
            Network("i3d", TFHUB_WEIGHTS),
            (Resize("tf1-bilinear", 224), Linear(2, 255, -1)),
            ddof=1,
            root="svd",
            num_frames=16,
        ),
        STYLEGAN_V,
        dataclasses.replace(STYLEGAN_V, name="stylegan-v-128f", num_frames=128),
        dataclasses.replace(STYLEGAN_V, name="stylegan-v-128f-subsample8f", stride=8),
        Protocol(
            "common-metrics-styleganv",
            "fvd",
            TORCHSCRIPT_I3D,
            (UNIT, Resize("torch-bilinear", 224, crop=True), Linear(multiply=2, add=-1)),
            ddof=1,
            root="sqrtm",
            num_frames=16,
        ),
        Protocol(
            "common-metrics-videogpt",
            "fvd",
            STATE_DICT_I3D,
            (UNIT, Truncate(), UNIT, Resize("torch-bilinear", 224, crop=True), Linear(add=-0.5), Linear(multiply=2)),
            ddof=1,
            root="svd",
            num_frames=16,
        ),
        CD_FVD,
        dataclasses.replace(
            CD_FVD,
            name="cd-fvd-videomae",
            network=VIDEOMAE,
            steps=(*CD_FVD.steps[:3], UNIT, Resize("torch-bilinear", 224)),
        ),
        Protocol(
            "pytorch-fid",
            "fid",
            Network("inception", ("pytorch-fid", "torch-fidelity", "nvidia-inception")),
            (UNIT, Resize("torch-bilinear", 299), SIGNED),
            ddof=1,
            root="sqrtm",
            root_offset=1e-6,
            published=50_000,
        ),
        CLEAN_FID,
        dataclasses.replace(CLEAN_FID, name="clean-fid-legacy-tf", steps=(Resize("tf1-bilinear", 299), *AROUND_128)),
        TORCH_FIDELITY,
        SYNTH,
        dataclasses.replace(SYNTH, name="synth-fd", metric="synth-fd", network=Network("synth-image", (KIND,))),
    )
}


def choose_protocol(name: str, metric: str) -> Protocol:
    """A protocol of `metric`. Raises UserError for an unknown name, with those that there are."""
    return choose({n: p for n, p in PROTOCOLS.items() if p.metric == metric}, name, f"--protocol of --metric {metric}")


def preprocess(
    protocol: Protocol, frames: UInt8[np.ndarray, "T Y X 3"]
) -> Float32[np.ndarray, "{protocol.num_frames} {protocol.side} {protocol.side} 3"]:
    """What reaches the network. Raises UserError for fewer frames than the protocol takes."""
    needed = protocol.needed_frames
    if len(frames) < needed:
        raise UserError(f"protocol {protocol.name} takes {needed} frames, the video has {len(frames)}")
    return run_steps(protocol, frames[: needed : protocol.stride])


def run_steps(
    protocol: Protocol, frames: UInt8[np.ndarray, "T Y X 3"]
) -> Float32[np.ndarray, "T {protocol.side} {protocol.side} 3"]:
    """All frames through the protocol's steps."""
    x = frames.astype(np.float32)
    for step in protocol.steps:
        x = step(x)
    return np.ascontiguousarray(x)
