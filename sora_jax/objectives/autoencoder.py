"""The autoencoder task: L1, a small KL (Kingma & Welling 2013; Rombach et al. 2022), and LPIPS or a
discriminator if asked for (a second group of parameters, updated after the autoencoder in each step)."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from data_pipeline.clip_stream import ClipSource, ClipStreamConfig
from data_pipeline.errors import UserError
from data_pipeline.prefetch import first_batches, make_stream
from sora_jax import flops
from sora_jax.config import OptimConfig, TrainConfig, at_least, build_config, build_data, check_sections, choose
from sora_jax.models.autoencoder import AutoencoderConfig, Posterior, VideoAutoencoder, forward_flops
from sora_jax.models.codec import apply, to_float
from sora_jax.models.discriminator import Discriminator, GanConfig
from sora_jax.models.layers import initialise
from sora_jax.models.lpips import BACKBONES, check_size, lpips
from sora_jax.models.lpips_weights import load_lpips
from sora_jax.models.principal import Weights, principal_weights, with_weights
from sora_jax.objectives.adversarial import discriminator_loss, generator_loss
from sora_jax.parallel import process_rows
from sora_jax.types import Batch, Frozen, LossOutput, ParamGroup, Params, Prepared, Sums, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights against an L1 of pixels in [-1, 1]: of the KL in nats of a latent value, and of the squared error, which
    finds small objects on plain backgrounds sooner than L1, the error of the median, does.

    `lpips_weight` is that of LPIPS, the mean over frames, with the backbone `lpips_net` ("alex", "vgg", "squeeze") from
    the files in the folder `lpips_weights`. With a folder and no weight, held-out clips are measured by it.
    """

    kl_weight: float = 1e-4
    squared_weight: float = 0.0
    lpips_weight: float = 0.0
    lpips_net: str = "vgg"
    lpips_weights: str = ""

    def __post_init__(self) -> None:
        at_least(self, "config.loss", 0, "kl_weight", "squared_weight", "lpips_weight")
        choose(BACKBONES, self.lpips_net, "config.loss.lpips_net")
        if self.lpips_weight and not self.lpips_weights:
            raise UserError(
                f"config.loss.lpips_weight is {self.lpips_weight}, but config.loss.lpips_weights names no folder with "
                "the heads and the backbone; docs/autoencoder.md says where they come from"
            )


@dataclass(frozen=True)
class StartConfig:
    """`principal_batches`: start as the best linear code of so many training batches (`principal.py`); 0: at random.

    `whiten`: each channel of that code has deviation 1; if not, all together have it, and a channel counts in the
    latents for as much as in the picture.
    """

    principal_batches: int = 0
    whiten: bool = True

    def __post_init__(self) -> None:
        at_least(self, "config.start", 0, "principal_batches")


def prepare(config: Mapping[str, Any]) -> Prepared:
    """The task and its data from a run's config. Raises UserError before any model is built."""
    check_sections(config, required=("data", "optim", "train"), optional=("model", "loss", "gan", "start"))
    model = build_config(AutoencoderConfig, config.get("model", {}), "config.model")
    loss = build_config(AutoencoderLossConfig, config.get("loss", {}), "config.loss")
    gan = build_config(GanConfig, config.get("gan", {}), "config.gan")
    start = build_config(StartConfig, config.get("start", {}), "config.start")
    optim = build_config(OptimConfig, config["optim"], "config.optim")
    train = build_config(TrainConfig, config["train"], "config.train")
    path, stream = config["data"]["path"], stream_config(config)
    for crop in stream.crops:
        model.latent_shape(*crop)
        if loss.lpips_weights:
            check_size(loss.lpips_net, *crop[1:])
        if gan.weight:
            gan.check_size(*crop[1:])
    lpips_weights = load_lpips(loss.lpips_net, loss.lpips_weights) if loss.lpips_weights else None
    rows = process_rows(train.batch_rows, train.mesh)
    source = ClipSource(path, stream, "train", rows)
    manifest = source.reader.manifest
    heldout = heldout_source(path, stream, rows) if manifest.counts["heldout"] else None
    task = Task(
        name="autoencoder",
        init=make_init(model, gan, principal_start(model, start, path, stream)),
        groups=make_groups(model, loss, gan, optim),
        evaluate=make_evaluate(model, loss),
        frozen={"lpips": lpips_weights.weights} if lpips_weights else {},
        flops=lambda batch: flops.TRAINING * len(batch["video"]) * forward_flops(model, *batch["video"].shape[1:4]),
        preview=make_preview(model, heldout or source),
        fingerprints={"data": manifest.fingerprint, **({"lpips": lpips_weights.fingerprint} if lpips_weights else {})},
    )
    return Prepared(
        task=task,
        train=train,
        make_batches=lambda start, num: make_stream(source, start, num, train.num_workers),
        eval_batches=lambda _: first_batches(heldout, train.eval_batches),
        config=dict(config),
    )


def without_data(config: Mapping[str, Any]) -> Task:
    """The task for measurements of its step: it starts at random and neither looks at clips nor at LPIPS."""
    model = build_config(AutoencoderConfig, config.get("model", {}), "config.model")
    loss = build_config(AutoencoderLossConfig, config.get("loss", {}), "config.loss")
    loss = dataclasses.replace(loss, lpips_weight=0.0, lpips_weights="")
    gan = build_config(GanConfig, config.get("gan", {}), "config.gan")
    optim = build_config(OptimConfig, config["optim"], "config.optim")
    return Task(
        name="autoencoder",
        init=make_init(model, gan),
        groups=make_groups(model, loss, gan, optim),
        evaluate=make_evaluate(model, loss),
        flops=lambda batch: flops.TRAINING * len(batch["video"]) * forward_flops(model, *batch["video"].shape[1:4]),
    )


def stream_config(config: Mapping[str, Any]) -> ClipStreamConfig:
    """The crops from a run's config; the global batch and the seed are the run's own."""
    return build_data(ClipStreamConfig, config)


def heldout_source(path: str, stream: ClipStreamConfig, rows: tuple[int, int]) -> ClipSource | None:
    """The held-out clips at the crops that some of them can fill (few clips may lack a size), weighed as in training.

    None if no crop fits.
    """
    fitting = []
    for crop, weight in zip(stream.crops, stream.weights or (1.0,) * len(stream.crops), strict=True):
        try:
            ClipSource(path, dataclasses.replace(stream, crops=(crop,), weights=()), "heldout", rows)
            fitting.append((crop, weight))
        except UserError as error:
            logger.warning("not evaluated at %s: %s", crop, error)
    if not fitting:
        return None
    crops, weights = zip(*fitting, strict=True)
    return ClipSource(path, dataclasses.replace(stream, crops=crops, weights=weights), "heldout", rows)


def principal_start(
    model: AutoencoderConfig, cfg: StartConfig, path: str, stream: ClipStreamConfig
) -> Callable[[], Weights]:
    """The values to start from in place of random ones, computed when they are first asked for."""

    @functools.cache
    def weights() -> Weights:
        # every process reads the whole batches: all must start from the same numbers
        source = ClipSource(path, stream, "train")
        videos = (source[step]["video"] for step in range(cfg.principal_batches))
        return principal_weights(model, videos, cfg.whiten)

    return weights if cfg.principal_batches else dict


def make_init(
    model: AutoencoderConfig, gan: GanConfig, start: Callable[[], Weights] = dict
) -> Callable[[jax.Array], Params]:
    """Fresh parameters; the autoencoder's do not depend on whether there is a discriminator."""

    def init(key: jax.Array) -> Params:
        fresh = initialise(lambda rngs: VideoAutoencoder(model, rngs), key)
        params = {"autoencoder": with_weights(fresh, start())}
        if gan.weight:
            key = jax.random.fold_in(key, 1)
            params["discriminator"] = initialise(lambda rngs: Discriminator(gan, rngs), key)
        return params

    return init


def make_groups(
    model: AutoencoderConfig, cfg: AutoencoderLossConfig, gan: GanConfig, optim: OptimConfig
) -> tuple[ParamGroup, ...]:
    """The autoencoder, then the discriminator, which sees the reconstructions of the autoencoder just updated."""
    groups = [ParamGroup("autoencoder", make_loss(model, cfg, gan), optim)]
    if gan.weight:
        own = dataclasses.replace(optim, learning_rate=gan.learning_rate or optim.learning_rate)
        groups.append(ParamGroup("discriminator", make_discriminator_loss(model, gan), own))
    return tuple(groups)


def make_loss(model: AutoencoderConfig, cfg: AutoencoderLossConfig, gan: GanConfig):
    """Sum over the rows of mean |x̂ - x| + squared_weight x mean (x̂ - x)² + kl_weight x mean KL + lpips_weight x mean
    LPIPS of a frame, with z ~ posterior; and what fooling the discriminator is worth (`adversarial.py`)."""

    def reconstruction(frozen: Frozen, video: jax.Array, decoded: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of each clip's pixels, and what to log."""
        logged = {"l1": per_row(jnp.abs(decoded - video)), "psnr": psnr(decoded, video)}
        total = logged["l1"] + cfg.squared_weight * per_row(jnp.square(decoded - video))
        if cfg.lpips_weight:
            logged["lpips"] = lpips_of_clips(cfg.lpips_net, frozen["lpips"], decoded, video)
            total = total + cfg.lpips_weight * logged["lpips"]
        return total, logged

    def loss(params: Params, frozen: Frozen, batch: Batch, key: jax.Array, row_offset: jax.Array) -> LossOutput:
        video = to_float(batch["video"])
        posterior, latents, decoded = autoencode(model, params["autoencoder"], video, key, row_offset)
        total, logged = reconstruction(frozen, video, decoded)
        logged["kl"] = per_row(posterior.kl())
        total, weight = total + cfg.kl_weight * logged["kl"], jnp.asarray(len(video), jnp.float32)
        if gan.weight:
            of_pixels = lambda x: reconstruction(frozen, video, x)[0]  # noqa: E731
            gain, adaptive = generator_loss(model, gan, params, latents, decoded, of_pixels, batch["step"])
            total, logged["gan_weight"] = total + gain, jnp.full_like(total, adaptive)
        return LossOutput(total.sum(), weight, {name: (value.sum(), weight) for name, value in logged.items()})

    return loss


def make_discriminator_loss(model: AutoencoderConfig, gan: GanConfig):
    """Sum over the rows of the discriminator's loss on the clips and their reconstructions, from the same noise."""

    def loss(params: Params, frozen: Frozen, batch: Batch, key: jax.Array, row_offset: jax.Array) -> LossOutput:
        video = to_float(batch["video"])
        decoded = autoencode(model, params["autoencoder"], video, key, row_offset)[2]
        total, logged = discriminator_loss(gan, params["discriminator"], decoded, video, batch["step"])
        weight = jnp.asarray(len(video), jnp.float32)
        return LossOutput(total.sum(), weight, {name: (value.sum(), weight) for name, value in logged.items()})

    return loss


def autoencode(
    model: AutoencoderConfig, params: Params, video: Float[Array, "B T Y X 3"], key: jax.Array, row_offset: jax.Array
) -> tuple[Posterior, Float[Array, "B F H W C"], Float[Array, "B T Y X 3"]]:
    """The posterior, latents drawn from it with each row's own noise, and what they decode to."""
    network = apply(model, params)
    posterior, _ = network.encode(video, [])
    rows = row_offset + jnp.arange(len(video))
    noise = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), posterior.mean.shape[1:]))(rows)
    latents = posterior.mean + jnp.exp(0.5 * posterior.log_variance) * noise
    return posterior, latents, network.decode(latents, [])[0]


def make_evaluate(model: AutoencoderConfig, cfg: AutoencoderLossConfig):
    """Reconstruction from the posterior mean: L1 of pixels in [-1, 1], PSNR in dB, and LPIPS where its weights are."""

    def evaluate(params: Params, frozen: Frozen, batch: Batch, key: jax.Array) -> Sums:
        network, video = apply(model, params["autoencoder"]), to_float(batch["video"])
        decoded, _ = network.decode(network.encode(video, [])[0].mean, [])
        weight = jnp.asarray(len(video), jnp.float32)
        sums = {"l1": (per_row(jnp.abs(decoded - video)).sum(), weight), "psnr": (psnr(decoded, video).sum(), weight)}
        if cfg.lpips_weights:
            looks = lpips_of_clips(cfg.lpips_net, frozen["lpips"], jnp.clip(decoded, -1.0, 1.0), video)
            sums["lpips"] = (looks.sum(), weight)
        return sums

    return evaluate


def lpips_of_clips(
    net: str, weights: Frozen, decoded: Float[Array, "B T Y X 3"], video: Float[Array, "B T Y X 3"]
) -> Float[Array, " B"]:
    """The mean LPIPS of each clip's frames."""
    frames = [x.reshape(-1, *x.shape[2:]) for x in (decoded, video)]
    return lpips(net, weights, *frames).reshape(video.shape[:2]).mean(1)


def per_row(x: jax.Array) -> jax.Array:
    """The mean over everything but the rows, `[B]`."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def psnr(decoded: jax.Array, video: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of each row, for pixels in [-1, 1] clipped to their range, `[B]`."""
    error = per_row(jnp.square((jnp.clip(decoded, -1.0, 1.0) - video) / 2.0))
    return -10.0 * jnp.log10(jnp.maximum(error, 1e-10))


def make_preview(model: AutoencoderConfig, source: ClipSource):
    """A sheet of real frames above their reconstructions, one pair of lines for each of up to four clips."""

    @jax.jit
    def reconstruct(params: Params, video: jax.Array) -> jax.Array:
        network = apply(model, params["autoencoder"])
        return network.decode(network.encode(to_float(video), [])[0].mean, [])[0]

    def preview(params: Params, frozen: Frozen, directory: Path, step: int) -> list[Path]:
        video = source[0]["video"][:4]
        decoded = np.asarray(reconstruct(params, video))
        pixels = np.clip(np.round((decoded + 1.0) * 127.5), 0, 255).astype(np.uint8)
        lines = [np.concatenate(list(clip), axis=1) for pair in zip(video, pixels, strict=True) for clip in pair]
        path = directory / f"reconstructions_{step:07d}.png"
        Image.fromarray(np.concatenate(lines, axis=0)).save(path)
        return [path]

    return preview
