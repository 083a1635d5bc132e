"""A trained run as something that samples: its generator, parameters, frozen networks, and what these are."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from sora_jax.config import build_config
from sora_jax.diffusion.generation import DiffusionConfig, PackedSampler, PreviewConfig
from sora_jax.diffusion.sharding import network_shardings
from sora_jax.generation.manifest import digest
from sora_jax.models.codec import load_codec
from sora_jax.objectives.data_stages import data_path, flow_config, stream_config
from sora_jax.objectives.diffusion import model_config
from sora_jax.objectives.frozen_text import load_text_encoder, text_encoder_config
from sora_jax.parallel import make_mesh
from sora_jax.training.checkpoint import LoadedRun, find_checkpoint, load_params
from sora_jax.training.manifest import read_manifest
from sora_jax.types import Device, Frozen


@dataclass(frozen=True)
class TrainedRun:
    """The sampler of a run with its parameters (the EMA, usually) and frozen networks; `preview` holds the settings
    that the run drew its previews with."""

    sampler: PackedSampler
    params: Any
    frozen: Frozen
    preview: PreviewConfig
    step: int
    identity: dict[str, Any]
    """What a manifest says of it: step, whether it is the EMA, the SHA-256 of checkpoint, autoencoder, tokenizer and
    text encoder, and the tiles in which frames are decoded (0: whole, None: not chosen yet)."""

    def on(self, device: Device) -> "TrainedRun":
        """The same, with everything on one device."""
        params, frozen, of_codec = jax.device_put((self.params, self.frozen, self.sampler.codec.params), device)
        codec = dataclasses.replace(self.sampler.codec, params=of_codec)
        sampler = dataclasses.replace(self.sampler, codec=codec)
        return dataclasses.replace(self, sampler=sampler, params=params, frozen=frozen)


def load_run(
    run: Path,
    step: int | None = None,
    *,
    ema: bool = True,
    latents: Path | None = None,
    text_encoder: Path | None = None,
    tile: int | None = None,
    mesh: Mapping[str, int] | None = None,
) -> TrainedRun:
    """The run in `run` at its newest checkpoint, or at `step`. `latents` and `text_encoder` say where these are, if
    they have moved since training; frames are decoded in tiles of `tile` pixels, 0: whole, None: as memory asks for.
    `mesh` names axes and their sizes, as `config.train.mesh` does, for this process's devices; without one everything
    is on the first.

    Raises UserError for a run of another kind, and for an autoencoder, tokenizer or text encoder of another run.
    """
    devices = None if mesh is None else make_mesh(mesh, jax.local_devices(), "--mesh")
    shardings = None if devices is None else lambda shapes: network_shardings(shapes, devices)
    loaded = load_params(run, step, ema=ema, shardings=shardings)
    if "dit" not in loaded.params:
        raise UserError(f"{run} is no generator's run: it trained {', '.join(loaded.params)}")
    latents = latents or data_path(loaded.config)
    if not (latents / "autoencoder").exists():
        raise UserError(f"the run's latents are not at {latents}; say where they are with --latents")
    codec, tokenizer = load_codec(latents / "autoencoder"), Tokenizer.load(latents / "tokenizer.model")
    codec.check_fingerprint(loaded.fingerprints["autoencoder"], latents)
    remedy = "point --latents at the latents that it was trained on"
    _check_same(f"{latents} holds tokenizer", tokenizer.fingerprint, loaded.fingerprints["tokenizer"], remedy)
    layout = stream_config(loaded.config).layout(codec.config.latent_channels)
    described = dict(loaded.config["model"])
    if text_encoder is not None:
        described["text_encoder"] = {**described.get("text_encoder", {}), "path": str(text_encoder)}
    model = model_config(described, layout.patch_values, tokenizer.vocab_size)
    flow = flow_config(loaded.config)
    return TrainedRun(
        PackedSampler(DiffusionConfig(model, flow), layout, codec.in_tiles(tile or 0), tokenizer, devices),
        loaded.params["dit"],
        load_frozen(described, tokenizer, latents, loaded.fingerprints, devices),
        build_config(PreviewConfig, loaded.config.get("preview", {}), "config.preview"),
        loaded.step,
        {"step": loaded.step, "ema": ema, **_digests(run, loaded), "tile": tile},
    )


def _digests(run: Path, loaded: LoadedRun) -> dict[str, str]:
    """SHA-256 over the digests of the checkpoint's files ("unverified" of one that has none), and of what lies beside
    the run."""
    manifest = read_manifest(find_checkpoint(run, loaded.step))
    files = None if manifest is None else {name: file.sha256 for name, file in manifest.files.items()}
    names = ("autoencoder", "tokenizer", "text_encoder")
    beside = {name: loaded.fingerprints[name] for name in names if name in loaded.fingerprints}
    return {"checkpoint": "unverified" if files is None else digest(files), **beside}


def load_frozen(
    model: dict[str, Any], tokenizer: Tokenizer, latents: Path, fingerprints: dict[str, str], mesh: Mesh | None
) -> Frozen:
    """The frozen text encoder of `config.model`, if it has one, on the devices. Raises UserError for another one."""
    source = text_encoder_config(model)
    if source is None:
        return {}
    encoder = load_text_encoder(source, tokenizer, latents)
    expected, path = fingerprints.get("text_encoder", "none"), model["text_encoder"]["path"]
    _check_same(f"{path} holds text encoder", encoder.fingerprint, expected, "say where that is with --text_encoder")
    frozen = {"text_encoder": encoder.params}
    return jax.device_put(frozen, None if mesh is None else network_shardings(frozen, mesh))


def _check_same(what: str, found: str, trained_with: str, remedy: str) -> None:
    """Raises UserError unless the two fingerprints are one."""
    if found != trained_with:
        raise UserError(f"{what} {found[:12]}, but the run was trained with {trained_with[:12]}; {remedy}")
