"""A trained autoencoder as the rest of the program holds it: saved, loaded, and applied to whole videos in chunks.

An export is a folder with `weights.safetensors` and `autoencoder.json` (config, per-channel mean and deviation of the
latents, fingerprint). The fingerprint covers all of these, so that latents of two autoencoders never mix.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data_pipeline.errors import UserError
from sora_jax.config import build_config, choose
from sora_jax.models.autoencoder import AutoencoderConfig, Posterior, VideoAutoencoder
from sora_jax.models.layers import definition
from sora_jax.models.taef import TaefConfig, TinyAutoencoder
from sora_jax.models.tiling import Blend, Tiling, tiles
from sora_jax.models.wan import WanAutoencoder, WanConfig
from sora_jax.parallel import put_frozen, spec

OURS = "sora_jax"
AnyConfig = AutoencoderConfig | WanConfig | TaefConfig
AnyAutoencoder = VideoAutoencoder | WanAutoencoder | TinyAutoencoder
ARCHITECTURES: dict[str, tuple[type[Any], type[Any]]] = {
    OURS: (AutoencoderConfig, VideoAutoencoder),
    "wan": (WanConfig, WanAutoencoder),
    "taef2": (TaefConfig, TinyAutoencoder),
}
"""Name in an export → config (a `Compression`) and module, whose `encode` and `decode` take and return a cache."""


@dataclasses.dataclass(frozen=True)
class Codec:
    """Frozen autoencoder weights with the statistics `[C]` of the latents that they make.

    Videos are coded `config.chunk_latents` latent frames at a time, so that memory does not grow with the clip. With
    `tiling`, every frame is coded in tiles, with `mesh` (`on_mesh`) on several devices: clips over the axes of rows,
    each frame's rows of pixels over `context`. Both are how latents are made, not what they are, and are not saved.
    """

    config: AnyConfig
    params: dict[str, Any]
    latent_mean: Float32[np.ndarray, " C"]
    latent_std: Float32[np.ndarray, " C"]
    tiling: Tiling | None = None
    mesh: Mesh | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(_header(self), sort_keys=True).encode())
        for name, value in sorted(_flat(self.params).items()):
            digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def check_fingerprint(self, expected: str, where: Path | str) -> None:
        """Raises UserError unless this is the autoencoder that `expected` names."""
        if self.fingerprint != expected:
            raise UserError(
                f"{where} holds autoencoder {self.fingerprint[:12]}, but the latents were made by {expected[:12]}; "
                "put that autoencoder there, or encode the clips again"
            )

    def in_tiles(self, tile: int) -> "Codec":
        """This codec, coding frames as `--tile` says. Raises UserError as `Tiling.of_option` does."""
        return dataclasses.replace(self, tiling=Tiling.of_option(tile, self.config.spatial_compression))

    def on_mesh(self, mesh: Mesh) -> "Codec":
        """This codec, coding on the devices of `mesh`."""
        return dataclasses.replace(self, params=put_frozen(jax.device_get(self.params), mesh), mesh=mesh)

    def encode(self, video: UInt8[np.ndarray, "B T Y X 3"]) -> Float32[np.ndarray, "B F H W C"]:
        """Raw posterior means of whole videos, chunk by chunk. Raises UserError for an illegal shape."""
        return self.posterior(video).mean

    def posterior(self, video: UInt8[np.ndarray, "B T Y X 3"]) -> Posterior:
        """As `encode`, with the log-variances."""
        self.config.latent_shape(*video.shape[1:4])
        return Posterior(*(np.concatenate(parts, axis=1) for parts in zip(*self.encode_stream([video]), strict=True)))

    def encode_stream(self, pieces: Iterable[UInt8[np.ndarray, "B _T Y X 3"]]) -> Iterator[Posterior]:
        """The posteriors of one video from consecutive pieces of its frames, a few latents at a time.

        The first piece has 1 + c n frames, each later one c n. Only the causal caches are kept from piece to piece.
        Raises UserError for other numbers of frames.
        """
        c, cache = self.config.temporal_compression, []
        for piece in pieces:
            if (piece.shape[1] - (not cache)) % c:
                wanted = f"{c} n" if cache else f"1 + {c} n"
                raise UserError(f"a piece of {piece.shape[1]} frames, but it must have {wanted}; pass whole latents")
            for start, end in chunks(piece.shape[1], self.config.chunk_latents * c, is_first=not cache):
                moments, cache = self._encode_chunk(piece[:, start:end], cache)
                yield Posterior(*np.split(moments, 2, axis=-1))

    def _encode_chunk(
        self, video: UInt8[np.ndarray, "B T Y X 3"], cache: list[Any]
    ) -> tuple[Float32[np.ndarray, "B F H W D"], list[Any]]:
        if self.tiling is not None:
            return self._encode_tiles(video, cache, self.tiling)
        moments, cache = self._run(_encode, video, cache)
        return np.asarray(moments), cache

    def _run(self, coder: Any, x: np.ndarray, cache: Any) -> tuple[jax.Array, Any]:
        """One of the programs below on one chunk, laid out on the mesh if there is one."""
        if self.mesh is None:
            return coder(self.config, self.params, x, cache)
        with jax.set_mesh(self.mesh):
            dims = ("row", None, "height", None, None)
            placed = jax.device_put(x, NamedSharding(self.mesh, spec(dims, x.shape, self.mesh)))
            return coder(self.config, self.params, placed, cache)

    def decode(self, latents: Float[np.ndarray, "B F H W C"]) -> UInt8[np.ndarray, "B T Y X 3"]:
        """Whole videos from raw (not normalised) latents, chunk by chunk."""
        return np.concatenate(list(self.decode_stream([latents])), axis=1)

    def decode_stream(
        self, pieces: Iterable[Float[np.ndarray, "B _F H W C"]]
    ) -> Iterator[UInt8[np.ndarray, "B T Y X 3"]]:
        """One video from consecutive pieces of its raw latents, as they come: a few latents' frames at a time.

        Only the causal caches are kept from piece to piece. Equal to `decode` of all pieces in one, bitwise where each
        piece ends with a chunk (1 + n `config.chunk_latents`, then n of them), elsewhere up to the rounding of sums.
        """
        cache: list[Any] = []
        for piece in pieces:
            for start, end in chunks(piece.shape[1], self.config.chunk_latents, is_first=not cache):
                pixels, cache = self._decode_chunk(piece[:, start:end].astype(np.float32), cache)
                yield pixels

    def _decode_chunk(
        self, latents: Float32[np.ndarray, "B F H W C"], cache: list[Any]
    ) -> tuple[UInt8[np.ndarray, "B T Y X 3"], list[Any]]:
        if self.tiling is not None:
            return self._decode_tiles(latents, cache, self.tiling)
        pixels, cache = self._run(_decode, latents, cache)
        return np.asarray(pixels), cache

    def _encode_tiles(
        self, video: UInt8[np.ndarray, "B T Y X 3"], caches: list[Any], tiling: Tiling
    ) -> tuple[Float32[np.ndarray, "B F H W D"], list[Any]]:
        """Means and log-variances of one chunk, and the tiles' caches."""
        scale = self.config.spatial_compression
        tiling.check(scale)
        height, width = (n // scale for n in video.shape[2:4])
        places = tiles(height, width, tiling.tile // scale, tiling.overlap // scale)
        caches = caches or [[] for _ in places]
        blend = Blend(tiling.overlap // scale, -(-self.config.spatial_reach // scale))
        for i, place in enumerate(places):
            part = place.scaled(scale).cut(video)
            moments, caches[i] = jax.device_get(self._run(_encode, part, caches[i]))
            blend.add(place, moments)
        return blend.mean(), caches

    def _decode_tiles(
        self, latents: Float32[np.ndarray, "B F H W C"], caches: list[Any], tiling: Tiling
    ) -> tuple[UInt8[np.ndarray, "B T Y X 3"], list[Any]]:
        """One chunk, tile by tile, and the tiles' caches, which wait on the host: the device holds one tile."""
        scale = self.config.spatial_compression
        tiling.check(scale)
        places = tiles(*latents.shape[2:4], tiling.tile // scale, tiling.overlap // scale)
        caches = caches or [[] for _ in places]
        blend = Blend(tiling.overlap, self.config.spatial_reach)
        for i, place in enumerate(places):
            video, caches[i] = jax.device_get(self._run(_decode_float, place.cut(latents), caches[i]))
            blend.add(place.scaled(scale), video)
        return np.clip(np.round((blend.mean() + 1.0) * 127.5), 0, 255).astype(np.uint8), caches

    def normalise(self, latents: Float[np.ndarray, "... C"]) -> Float[np.ndarray, "... C"]:
        return (latents - self.latent_mean) / self.latent_std

    def denormalise(self, latents: Float[np.ndarray, "... C"]) -> Float[np.ndarray, "... C"]:
        return latents * self.latent_std + self.latent_mean

    def with_one_scale(self) -> "Codec":
        """This codec, dividing latents by one deviation: the root mean square of the channels'."""
        rms = np.sqrt(np.square(self.latent_std).mean(dtype=np.float64))
        return dataclasses.replace(self, latent_std=np.full_like(self.latent_std, rms))

    def save(self, directory: Path) -> None:
        """Writes the export; `autoencoder.json`, renamed into place last, commits it."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: np.ascontiguousarray(v) for k, v in _flat(self.params).items()}, directory / "weights.safetensors"
        )
        text = json.dumps({**_header(self), "fingerprint": self.fingerprint}, indent=1) + "\n"
        (directory / "autoencoder.json.tmp").write_text(text)
        os.replace(directory / "autoencoder.json.tmp", directory / "autoencoder.json")


def load_codec(directory: Path | str) -> Codec:
    """The export in `directory`, or in the `export` folder of an autoencoder's run.

    Raises UserError when there is none or when its weights are not the ones that its fingerprint names.
    """
    candidates = [Path(directory), Path(directory) / "export"]
    folder = next((d for d in candidates if (d / "autoencoder.json").exists()), None)
    if folder is None:
        raise UserError(
            f"{directory} holds no autoencoder export (autoencoder.json); run `sora-jax encode --autoencoder "
            f"{directory} --data CLIPS --out LATENTS` first, which writes one"
        )
    try:
        header = json.loads((folder / "autoencoder.json").read_text())
        params = traverse_util.unflatten_dict(load_file(folder / "weights.safetensors"), sep="/")
        mean, std = (np.asarray(header[name], np.float32) for name in ("latent_mean", "latent_std"))
        config, said = dict(header["config"]), str(header["fingerprint"])
        name = str(header.get("architecture", OURS))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"the autoencoder export {folder} is damaged ({error!r}); copy it or run encode again"
        ) from error
    kind, _ = choose(ARCHITECTURES, name, f"the architecture in {folder}/autoencoder.json")
    codec = Codec(
        config=build_config(kind, config, f"{folder}/autoencoder.json: config"),
        params=jax.tree.map(jnp.asarray, params),
        latent_mean=mean,
        latent_std=std,
    )
    if codec.fingerprint != said:
        raise UserError(
            f"{folder}: the weights' fingerprint is {codec.fingerprint[:12]}, autoencoder.json says {said[:12]}; the "
            "export is damaged, copy it again"
        )
    return codec


def to_float(video: UInt8[np.ndarray, "..."] | jax.Array) -> jax.Array:
    """Pixels 0..255 as float32 in [-1, 1]."""
    return jnp.asarray(video, jnp.float32) / 127.5 - 1.0


def apply(config: AnyConfig, params: dict[str, Any]) -> AnyAutoencoder:
    """The module with these parameters."""
    return nnx.merge(_definition(config), params)


@functools.cache
def _definition(config: AnyConfig) -> Any:
    _, module = ARCHITECTURES[architecture(config)]
    return definition(lambda rngs: module(config, rngs))


def architecture(config: AnyConfig) -> str:
    """The name under which an export says what it is."""
    return next(name for name, (kind, _) in ARCHITECTURES.items() if type(config) is kind)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config, params, video, cache):
    posterior, cache = apply(config, params).encode(to_float(video), cache)
    return jnp.concatenate(posterior, axis=-1), cache


@functools.partial(jax.jit, static_argnums=0)
def _decode(config, params, latents, cache):
    video, cache = apply(config, params).decode(latents, cache)
    return jnp.clip(jnp.round((video + 1.0) * 127.5), 0, 255).astype(jnp.uint8), cache


@functools.partial(jax.jit, static_argnums=0)
def _decode_float(config, params, latents, cache):
    return apply(config, params).decode(latents, cache)


def chunks(length: int, step: int, is_first: bool = True) -> Iterator[tuple[int, int]]:
    """A video's first chunk is one longer than the others: it holds the frame (or latent) that stands alone."""
    start = 0
    while start < length:
        end = min(length, start + step + (is_first and start == 0))
        yield start, end
        start = end


def _header(codec: Codec) -> dict[str, Any]:
    name, config = architecture(codec.config), dataclasses.asdict(codec.config)
    if config.get("norm_latents") is True:
        del config["norm_latents"]  # younger than fingerprints are: its default is said by silence
    return {
        **({} if name == OURS else {"architecture": name}),  # ours have none: fingerprints are older than the others
        "config": config,
        "latent_mean": [float(v) for v in codec.latent_mean],
        "latent_std": [float(v) for v in codec.latent_std],
    }


def _flat(params: dict[str, Any]) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
