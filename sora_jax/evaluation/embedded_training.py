"""How the embedded networks were trained: on rendered clips of the rich world, to name what is in them.

What a clip holds is known exactly, so a label costs nothing. Half of the video network's clips have their frames
shuffled, and whether they have is one of its attributes: so its features depend on the order of frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, UInt8

from data_pipeline.synthetic.render import render
from data_pipeline.synthetic.scene import Scene
from data_pipeline.synthetic.worlds import draw_scene
from sora_jax.models.embedded import (
    MOTIONS,
    NETWORKS,
    NUM_FRAMES,
    SHUFFLED,
    SIDE,
    STILL,
    Embedded,
    EmbeddedConfig,
    to_tensors,
)
from sora_jax.models.feature_files import Tensors
from sora_jax.models.layers import definition, initialise

WORLD = "rich"
Clips = UInt8[np.ndarray, "N T Y X 3"]


@dataclass(frozen=True)
class Training:
    """Of one network; `num_heldout` more clips are rendered to measure it on."""

    num_clips: int = 1500
    num_heldout: int = 200
    num_steps: int = 350
    batch: int = 16
    learning_rate: float = 3e-3
    seed: int = 0


def render_clips(seed: int, num: int, show: Callable = lambda items: items) -> tuple[Clips, list[set[str]]]:
    """Clips of the rich world, and what is in each."""
    scenes = [draw_scene(WORLD, seed, i, (SIDE, SIDE), NUM_FRAMES) for i in range(num)]
    return np.stack([render(scene)[0] for scene in show(scenes)]), [_attributes(scene) for scene in scenes]


def _attributes(scene: Scene) -> set[str]:
    bodies = {word for body in scene.bodies for word in (body.colour, body.shape, body.direction or STILL)}
    return bodies | {scene.physics, scene.camera.kind}


def labels_of(config: EmbeddedConfig, found: list[set[str]]) -> Float32[np.ndarray, "N A"]:
    """1 where an attribute is in a clip."""
    return np.array([[name in one for name in config.attributes] for one in found], np.float32)


def train_embedded(
    network: str, training: Training, clips: Clips, found: list[set[str]], told: Callable[[int, float], None]
) -> tuple[Tensors, dict[str, float]]:
    """The tensors of a network and its accuracy on the last `num_heldout` clips, by kind of attribute."""
    config = NETWORKS[network]
    graph = definition(lambda rngs: Embedded(config, rngs))
    params = initialise(lambda rngs: Embedded(config, rngs), jax.random.key(training.seed))
    schedule = optax.cosine_decay_schedule(training.learning_rate, training.num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    opt_state = optimizer.init(params)
    labels, rng = labels_of(config, found), np.random.default_rng(training.seed)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, clips, labels, weights):
        loss, grads = jax.value_and_grad(lambda p: _loss(nnx.merge(graph, p), clips, labels, weights))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    num = len(clips) - training.num_heldout
    for number in range(training.num_steps):
        chosen = rng.integers(0, num, training.batch)
        batch = _batch(config, clips[chosen], labels[chosen], rng)
        params, opt_state, loss = step(params, opt_state, *batch)
        if number % 50 == 0:
            told(number, float(loss))
    tensors = {name: value.astype(np.float16).astype(np.float32) for name, value in to_tensors(params).items()}
    return tensors, _measure(graph, params, config, clips[num:], labels[num:], rng)


def _loss(model: Embedded, clips: Array, labels: Array, weights: Array) -> Float[Array, ""]:
    """Mean cross-entropy of the attributes that count."""
    logits = model.attributes(clips.astype(jnp.float32) / 127.5 - 1)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels) * weights
    return losses.sum() / jnp.broadcast_to(weights, losses.shape).sum()


def _batch(
    config: EmbeddedConfig, clips: Clips, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(clips, labels [N, 1, A], weights): two frames of each for the image network; half of the clips shuffled for that
    of videos, where words about motion say nothing then."""
    weights = np.ones((len(clips), 1, labels.shape[1]), np.float32)
    if not config.over_time:
        return clips[:, rng.choice(NUM_FRAMES, 2, replace=False)], labels[:, None], weights
    clips, labels = clips.copy(), labels.copy()
    shuffled = np.arange(len(clips)) % 2 == 1
    for i in np.flatnonzero(shuffled):
        clips[i] = clips[i, rng.permutation(NUM_FRAMES)]
    labels[:, config.attributes.index(SHUFFLED)] = shuffled
    of_motion = np.array([name in MOTIONS for name in config.attributes])
    weights[np.ix_(shuffled, [0], of_motion)] = 0
    return clips, labels[:, None], weights


def _measure(graph, params, config, clips, labels, rng) -> dict[str, float]:
    """How often the presence of an attribute is told right, beside the share that always saying no would have."""
    clips, labels, weights = _batch(config, clips, labels, rng)
    predict = jax.jit(lambda p, x: nnx.merge(graph, p).attributes(x.astype(jnp.float32) / 127.5 - 1))
    logits = np.concatenate([np.asarray(predict(params, clips[i : i + 50])) for i in range(0, len(clips), 50)])
    right = ((logits > 0) == (labels > 0.5)) * weights
    counted = np.broadcast_to(weights, right.shape)
    absent = (labels < 0.5) * counted
    kinds = {"all": slice(None)} | ({SHUFFLED: slice(-1, None)} if config.over_time else {})
    found = {name: float(right[..., part].sum() / counted[..., part].sum()) for name, part in kinds.items()}
    return found | {"always_no": float(absent.sum() / counted.sum())}
