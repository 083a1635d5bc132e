"""What a sample starts from: a latent canvas, and which of its tokens are known and held clean.

Text to video, animating stills, extending, looping, connecting, editing and inpainting are one sampler on different
canvases. Latent 0 of a canvas codes one frame and every later latent `c` (the temporal compression), leaning on the
past; latent j >= 1 codes the frames 1 + c (j - 1) … c j. So known content may lie

- from frame 0 on, in 1 + c n frames, encoded as they are: their latents are those of the whole clip;
- from frame 1 + c (j - 1) on, in c n frames, encoded as a window of their own: a copy of the first of them goes before
  them, and the first latent, which codes that copy, is dropped. Nothing of the source is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data_pipeline.errors import UserError
from data_pipeline.packing import RowLayout
from sora_jax.models.codec import Codec


@dataclass(frozen=True, eq=False)
class Canvas:
    """Normalised latents, and the tokens of them that are `known`.

    The others start from noise, or with `strength` t < 1 from (1 - t) x_0 + t ε of these latents, at time t of the
    flow (SDEdit, Meng et al. 2021). Raises UserError for a strength out of (0, 1], a canvas that is wholly known, and
    latents that are not finite.
    """

    latents: Float32[np.ndarray, "F H W C"]
    known: Bool[np.ndarray, "F rows columns"]
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.strength <= 1.0:
            raise UserError(f"strength is {self.strength}, but must be above 0 (the source) and at most 1 (all new)")
        if self.known.all():
            raise UserError(
                f"all {self.known.size} tokens of the canvas are known, so that nothing is left to make: "
                "ask for more frames, or for a mask with something white in it"
            )
        if not np.isfinite(self.latents).all():
            raise UserError("the autoencoder made latents of the condition that are not finite: choose another file")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(F, H, W)."""
        return self.latents.shape[0], self.latents.shape[1], self.latents.shape[2]


@dataclass(frozen=True, eq=False)
class Piece:
    """Known pixels, and the canvas frame at which they begin."""

    frames: UInt8[np.ndarray, "n Y X 3"]
    start: int


def lay(
    codec: Codec, layout: RowLayout, shape: tuple[int, int, int], pieces: Sequence[Piece], strength: float = 1.0
) -> Canvas:
    """A canvas of (F, H, W) latents with the pieces on it; what no piece covers is zero and not known.

    Raises UserError for a piece that does not fill whole latents, lies beyond the canvas or has another size, and for
    two that overlap.
    """
    num_frames = count_frames(codec, shape[0])
    latents = np.zeros((*shape, codec.config.latent_channels), np.float32)
    known = np.zeros(layout.grid(shape), bool)
    for piece in pieces:
        first = _first_latent(codec, piece, num_frames)
        height, width = (n * codec.config.spatial_compression for n in shape[1:])
        if piece.frames.shape[1:3] != (height, width):
            found = f"{piece.frames.shape[2]}x{piece.frames.shape[1]}"
            raise UserError(f"known frames are {found}, but the canvas is {width}x{height}: scale or crop them first")
        coded = encode_window(codec, piece.frames, is_first=first == 0)
        place = slice(first, first + len(coded))
        if known[place].any():
            raise UserError(f"two conditions both lie on frame {piece.start} of the canvas: move one of them")
        latents[place], known[place] = coded, True
    return Canvas(latents, known, strength)


def lay_masked(
    codec: Codec,
    layout: RowLayout,
    frames: UInt8[np.ndarray, "T Y X 3"],
    masked: Bool[np.ndarray, "T Y X"],
    strength: float = 1.0,
) -> Canvas:
    """A canvas of a whole clip of 1 + c n frames, of which the tokens that code no masked pixel are known."""
    latents = encode_window(codec, frames, is_first=True)
    return Canvas(latents, unmasked_tokens(codec, layout, masked), strength)


def encode_window(
    codec: Codec, frames: UInt8[np.ndarray, "n Y X 3"], *, is_first: bool
) -> Float32[np.ndarray, "F H W C"]:
    """Normalised latents of frames that start a canvas (1 + c n of them), or lie further on (c n)."""
    if is_first:
        return codec.normalise(codec.encode(frames[None])[0]).astype(np.float32)
    window = np.concatenate([frames[:1], frames])
    return codec.normalise(codec.encode(window[None])[0, 1:]).astype(np.float32)


def unmasked_tokens(
    codec: Codec, layout: RowLayout, masked: Bool[np.ndarray, "T Y X"]
) -> Bool[np.ndarray, "F rows columns"]:
    """Tokens none of whose pixels, in none of the frames that they code, is masked."""
    s, c = codec.config.spatial_compression, codec.config.temporal_compression
    rows, columns = masked.shape[1] // (s * layout.patch_size[1]), masked.shape[2] // (s * layout.patch_size[2])
    by_token = masked.reshape(len(masked), rows, masked.shape[1] // rows, columns, -1).any(axis=(2, 4))
    later = by_token[1:].reshape(-1, c, rows, columns).any(axis=1)
    return ~np.concatenate([by_token[:1], later])


def count_frames(codec: Codec, num_latents: int) -> int:
    """Frames that a canvas of so many latents codes."""
    return 1 + codec.config.temporal_compression * (num_latents - 1)


def latent_of(codec: Codec, frame: int) -> int:
    """The latent that codes a frame of the canvas."""
    return -(-frame // codec.config.temporal_compression)


def _first_latent(codec: Codec, piece: Piece, num_frames: int) -> int:
    """Where a piece's latents go. Raises UserError for one that does not fill whole latents of the canvas."""
    c, count = codec.config.temporal_compression, len(piece.frames)
    if piece.start < 0 or piece.start + count > num_frames:
        raise UserError(
            f"{count} known frames from frame {piece.start} on do not fit a canvas of {num_frames} frames: "
            "ask for more frames, or give fewer"
        )
    if piece.start == 0 and count % c != 1 % c:
        raise UserError(f"{count} known frames start the canvas, but 1 + {c} n can: give {count - (count - 1) % c}")
    if piece.start > 0 and ((piece.start - 1) % c or count % c or not count):
        raise UserError(
            f"{count} known frames from frame {piece.start} on do not fill latents of {c} frames, "
            f"which start at frames 1 + {c} n: move or cut them"
        )
    return latent_of(codec, piece.start)
