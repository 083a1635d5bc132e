"""Two small classifiers of procedural attributes that the package carries: the features of `synth-fd` and `synth-fvd`.

They were trained on rendered clips (`sora-jax evaluate train-embedded`), so that everyone has a trend without fetching
a network. They have seen nothing else than coloured shapes at 32 x 32 pixels: their distances are no FID and no FVD.

A frame passes three strided convolutions; in the video network each is followed by one over time, whose result is
added. Positions are averaged and maximised; one dense layer gives the features, another the attributes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Array, Float
from safetensors import safe_open
from safetensors.numpy import save_file

from data_pipeline.errors import from_os_error
from data_pipeline.synthetic.palette import COLOURS, DIAGONALS, DIRECTIONS, SHAPES
from sora_jax.models.feature_files import FeatureWeights, Tensors, fingerprint_of

FILE = Path(__file__).with_name("embedded.safetensors")
KIND = "embedded"
SIDE, NUM_FRAMES = 32, 9
"""Pixels a side and frames that the networks were trained on."""
WIDTHS = (16, 32, 48)
NUM_FEATURES = 64
STILL, SHUFFLED = "still", "shuffled"
LOOKS = (*COLOURS, *SHAPES)
MOTIONS = (*DIRECTIONS, *DIAGONALS, STILL, "bounce", "fall", "collide", "pan", "zoom", "orbit")


@dataclass(frozen=True)
class EmbeddedConfig:
    """`attributes` are what the head tells apart, each present or not; `over_time` makes it the video network."""

    over_time: bool
    attributes: tuple[str, ...]


NETWORKS = {
    "synth-image": EmbeddedConfig(over_time=False, attributes=LOOKS),
    "synth-video": EmbeddedConfig(over_time=True, attributes=(*LOOKS, *MOTIONS, SHUFFLED)),
}


class Embedded(nnx.Module):
    """Clips to features: one row a frame, or one a clip."""

    def __init__(self, config: EmbeddedConfig, rngs: nnx.Rngs):
        self.config = config
        draw, key = nnx.initializers.he_normal(), rngs.params
        inputs = (3, *WIDTHS[:-1])
        self.space = nnx.List([nnx.Param(draw(key(), (3, 3, n, m))) for n, m in zip(inputs, WIDTHS, strict=True)])
        self.space_bias = nnx.List([nnx.Param(jnp.zeros(width)) for width in WIDTHS])
        of_time = WIDTHS if config.over_time else ()
        self.time = nnx.List([nnx.Param(draw(key(), (3, width, width))) for width in of_time])
        self.dense = nnx.Param(draw(key(), (2 * WIDTHS[-1], NUM_FEATURES)))
        self.head = nnx.Param(0.1 * draw(key(), (NUM_FEATURES, len(config.attributes))))
        self.head_bias = nnx.Param(jnp.zeros(len(config.attributes)))

    def features(self, x: Float[Array, "N T Y X 3"]) -> Float[Array, "N R D"]:
        """Of clips in [-1, 1]: R is 1 in the video network, T in that of images."""
        num, frames = x.shape[:2]
        x = x.reshape(num * frames, *x.shape[2:])
        for i, (kernel, bias) in enumerate(zip(self.space, self.space_bias, strict=True)):
            x = jax.lax.conv_general_dilated(
                x, kernel[...], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
            )
            x = nnx.relu(x + bias[...])
            if self.config.over_time:
                x = x + nnx.relu(_over_time(x.reshape(num, frames, *x.shape[1:]), self.time[i][...])).reshape(x.shape)
        pooled = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], -1).reshape(num, frames, -1)
        if self.config.over_time:
            pooled = pooled.mean(1, keepdims=True)
        return jnp.matmul(pooled, self.dense[...], precision="highest")

    def attributes(self, x: Float[Array, "N T Y X 3"]) -> Float[Array, "N R A"]:
        """The logit of each attribute."""
        return nnx.relu(self.features(x)) @ self.head[...] + self.head_bias[...]


def _over_time(x: Float[Array, "N T Y X C"], kernel: Float[Array, "3 C D"]) -> Float[Array, "N T Y X D"]:
    """A convolution over three frames as a sum of products: CPUs are slow at the real thing."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    frames = x.shape[1]
    return sum(jnp.matmul(padded[:, k : k + frames], kernel[k], precision="highest") for k in range(3))


def to_tensors(params: Any) -> Tensors:
    """Parameters as flat names."""
    flat = traverse_util.flatten_dict(params)
    return {".".join(map(str, path)): np.asarray(value, np.float32) for path, value in flat.items()}


def to_params(tensors: Tensors) -> dict[str, Any]:
    """The way back; numbers of lists are ints again."""
    paths = {name: tuple(int(part) if part.isdigit() else part for part in name.split(".")) for name in tensors}
    return traverse_util.unflatten_dict({paths[name]: value for name, value in tensors.items()})


def save_embedded(networks: dict[str, Tensors], about: dict[str, Any], out: Path) -> None:
    """Both networks in one file, in float16. Raises UserError where it cannot be written."""
    tensors = {f"{name}/{part}": v.astype(np.float16) for name, held in networks.items() for part, v in held.items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out, metadata={"sora_jax": json.dumps(about, sort_keys=True)})
    except OSError as error:
        raise from_os_error(error, f"writing {out}") from error


def load_embedded(network: str, path: Path = FILE) -> FeatureWeights:
    """The weights of one of `NETWORKS`, as the package carries them."""
    with safe_open(path, "numpy") as file:
        names = [name for name in file.keys() if name.startswith(f"{network}/")]  # noqa: SIM118 - no mapping
        tensors = {name.partition("/")[2]: file.get_tensor(name).astype(np.float32) for name in names}
    return FeatureWeights(network, KIND, tensors, fingerprint_of(tensors))
