"""From what a person wants of a clip to a canvas, and from the canvas' frames to the result.

Animate stills, extend forward or backward, loop, connect, edit, inpaint: pure functions from pixels to a `Plan`, which
is sampled like any prompt. Pixels that are known are the source's own in the result, not the autoencoder's.
`docs/prompting.md` has the rules.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipeline.errors import UserError
from data_pipeline.packing import RowLayout
from sora_jax.diffusion.prompting import Canvas, Piece, count_frames, latent_of, lay, lay_masked
from sora_jax.models.codec import Codec

Frames = UInt8[np.ndarray, "T Y X 3"]


@dataclass(frozen=True, eq=False)
class Known:
    """The source's pixels of the canvas' frames from `start` on, where they are kept, and where known tokens code them
    (each everywhere if None): of a token that is made anew in part, the rest is kept but not coded by a known one."""

    start: int
    frames: UInt8[np.ndarray, "n Y X 3"]
    kept: Bool[np.ndarray, "n Y X"] | None = None
    coded: Bool[np.ndarray, "n Y X"] | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """What is sampled, and how its frames become the result: `before`, the canvas' frames of `cut`, `after`.

    `seams`: frames of the result that follow upon one of the other kind (known, new). `known_frames`: runs [first,
    end) of the result's frames that are the source's. `loops`: frame 0 follows upon the last one.
    """

    canvas: Canvas
    num_frames: int
    cut: slice
    known: tuple[Known, ...] = ()
    before: UInt8[np.ndarray, "a Y X 3"] | None = None
    after: UInt8[np.ndarray, "b Y X 3"] | None = None
    seams: tuple[int, ...] = ()
    known_frames: tuple[tuple[int, int], ...] = ()
    loops: bool = False

    def assemble(self, frames: Frames) -> UInt8[np.ndarray, "N Y X 3"]:
        """The result, from all frames of the canvas as they were decoded."""
        frames = frames.copy()
        for known in self.known:
            place = slice(known.start, known.start + len(known.frames))
            kept = True if known.kept is None else known.kept[..., None]
            frames[place] = np.where(kept, known.frames, frames[place])
        return np.concatenate([part for part in (self.before, frames[self.cut], self.after) if part is not None])

    def autoencoder_psnr(self, frames: Frames) -> float | None:
        """PSNR in dB of the pixels of the canvas' known tokens as they were decoded: the autoencoder's own error, which
        the result does not show. None where nothing is known."""
        squares, count = 0.0, 0
        for known in self.known:
            error = frames[known.start : known.start + len(known.frames)].astype(np.float32) - known.frames
            error = error if known.coded is None else error[known.coded]
            squares, count = squares + float(np.square(error, dtype=np.float64).sum()), count + error.size
        return None if not count else psnr(squares / count)


def coding_psnr(codec: Codec, frames: Frames, *, is_first: bool) -> float:
    """PSNR in dB of known frames through the autoencoder, coded as `encode_window` does."""
    window = frames if is_first else np.concatenate([frames[:1], frames])
    decoded = codec.decode(codec.encode(window[None]))[0, -len(frames) :]
    return psnr(float(np.square(decoded.astype(np.float32) - frames).mean(dtype=np.float64)))


def psnr(mean_square: float) -> float:
    """dB of an error in grey levels of 255."""
    return 10 * math.log10(255**2 / max(mean_square, 1e-10))


def animate(
    codec: Codec,
    layout: RowLayout,
    stills: Sequence[tuple[UInt8[np.ndarray, "Y X 3"], float]],
    num_frames: int,
    fps: float,
) -> Plan:
    """A clip that shows each still at its time in seconds.

    A still is held for the frames of one latent, of which its own alone is copied into the result. Raises UserError
    for a time beyond the clip, and for two stills in one latent.
    """
    c, pieces, known, taken = codec.config.temporal_compression, [], [], {}
    for still, at_s in stills:
        frame = round(at_s * fps)
        if not 0 <= frame < num_frames:
            raise UserError(
                f"an image at {at_s:g} s would be frame {frame} at {fps:g} fps, but the clip has {num_frames}: choose "
                f"a time from 0 to {(num_frames - 1) / fps:g} s, or ask for more frames"
            )
        latent = latent_of(codec, frame)
        if latent in taken:
            raise UserError(
                f"images at {taken[latent]:g} and {at_s:g} s fall within the same {c} frames: move one of them by "
                f"{c / fps:g} s"
            )
        taken[latent] = at_s
        pieces.append(Piece(held(codec, still, is_first=latent == 0), 0 if latent == 0 else 1 + c * (latent - 1)))
        known.append(Known(frame, still[None]))
    frames = sorted(k.start for k in known)
    changes = {f for frame in frames for f in (frame, frame + 1)} - {0, num_frames}
    shape = codec.config.latent_shape(num_frames, *stills[0][0].shape[:2])[:3]
    canvas = lay(codec, layout, shape, pieces)
    seams = tuple(sorted(f for f in changes if (f in frames) != (f - 1 in frames)))
    return Plan(
        canvas, num_frames, slice(None), tuple(known), seams=seams, known_frames=tuple((f, f + 1) for f in frames)
    )


def held(codec: Codec, still: UInt8[np.ndarray, "Y X 3"], *, is_first: bool) -> UInt8[np.ndarray, "n Y X 3"]:
    """A still for the frames of one latent: of the first, or of one further on."""
    return np.repeat(still[None], 1 if is_first else codec.config.temporal_compression, axis=0)


def extend_forward(codec: Codec, layout: RowLayout, source: Frames, num_new: int, context: int) -> Plan:
    """The source, and `num_new` frames after it; its last `context` frames are on the canvas, or the 1 + c n of them
    that fill whole latents."""
    start = head(codec, source, context)
    end = len(start) + num_new
    num_frames = _whole(codec, end)
    canvas = lay(codec, layout, _shape(codec, num_frames, source), [Piece(start, 0)])
    old = len(source)
    return Plan(
        canvas, num_frames, slice(len(start), end), (Known(0, start),), before=source, seams=(old,),
        known_frames=((0, old),),
    )  # fmt: skip


def extend_backward(codec: Codec, layout: RowLayout, source: Frames, num_new: int, context: int) -> Plan:
    """`num_new` frames that lead to the source, and the source; its first frames end the canvas: c n of them, at most
    `context` if that fills a latent."""
    end, real = tail(codec, source, context)
    start = _whole(codec, num_new)
    num_frames = start + len(end)
    canvas = lay(codec, layout, _shape(codec, num_frames, source), [Piece(end, start)])
    cut = slice(start - num_new, start)
    known_frames = ((num_new, num_new + len(source)),)
    return Plan(
        canvas, num_frames, cut, (Known(start, end[:real]),), after=source, seams=(num_new,), known_frames=known_frames
    )


def connect(
    codec: Codec, layout: RowLayout, first: Frames, second: UInt8[np.ndarray, "U Y X 3"], num_new: int, context: int
) -> Plan:
    """The first clip, `num_new` frames, the second clip. Raises UserError unless the new ones fill whole latents."""
    c = codec.config.temporal_compression
    if num_new < 1 or num_new % c:
        raise UserError(
            f"{num_new} new frames between two clips do not fill latents of {c} frames; the nearest legal number is "
            f"{c * max(1, round(num_new / c))}"
        )
    before, (after, real) = head(codec, first, context), tail(codec, second, context)
    start = len(before) + num_new
    canvas = lay(codec, layout, _shape(codec, start + len(after), first), [Piece(before, 0), Piece(after, start)])
    old, end = len(first), len(first) + num_new
    known = Known(0, before), Known(start, after[:real])
    return Plan(
        canvas, start + len(after), slice(len(before), start), known, before=first, after=second, seams=(old, end),
        known_frames=((0, old), (end, end + len(second))),
    )  # fmt: skip


def loop(codec: Codec, layout: RowLayout, source: Frames, num_new: int, context: int) -> Plan:
    """The source, and `num_new` frames that lead back to its first one, so that the result repeats without a seam."""
    plan, old = connect(codec, layout, source, source, num_new, context), len(source)
    return Plan(
        plan.canvas, plan.num_frames, plan.cut, plan.known, before=source, seams=(old,), known_frames=((0, old),),
        loops=True,
    )  # fmt: skip


def edit(
    codec: Codec,
    layout: RowLayout,
    source: Frames,
    strength: float,
    masked: Bool[np.ndarray, "T Y X"] | None = None,
) -> Plan:
    """The source made anew where it is masked, or everywhere: from noise, or with a `strength` below 1 from the source
    with as much noise as the flow has at that time. Pixels that are not masked stay the source's.

    A clip of another length than 1 + c n is held at its end, and cut again. Raises UserError for a mask without
    anything masked.
    """
    num_frames, count = _whole(codec, len(source)), len(source)
    everywhere = masked is None
    masked = np.ones(source.shape[:3], bool) if masked is None else masked
    padded, padded_mask = (np.concatenate([x, np.repeat(x[-1:], num_frames - count, axis=0)]) for x in (source, masked))
    canvas = lay_masked(codec, layout, padded, padded_mask, strength)
    if everywhere:
        return Plan(canvas, num_frames, slice(count))
    is_new = masked.all(axis=(1, 2))
    seams = tuple(int(f) + 1 for f in np.flatnonzero(is_new[1:] != is_new[:-1]))
    known_frames = _runs(~masked.any(axis=(1, 2)))
    known = Known(0, source, ~masked, _pixels_of(codec, canvas, source))
    return Plan(canvas, num_frames, slice(count), (known,), seams=seams, known_frames=known_frames)


def default_context(codec: Codec, window_frames: int, num_seams: int) -> int:
    """Known frames at a seam: about half of the window that the model was trained on, for all seams together."""
    c = codec.config.temporal_compression
    later = (window_frames - 1) // c
    return 1 + c * (max(1, later // 2) if num_seams == 1 else later // 4)


def room(codec: Codec, window_frames: int, context: int, direction: str) -> int:
    """New frames of a canvas of the trained window beside `context` known ones at its start ("forward"), end
    ("backward") or both ("between"); at least a latent's."""
    c = codec.config.temporal_compression
    head, tail = 1 + (context - 1) // c * c, max(1, context // c) * c
    taken = {"forward": head, "backward": tail, "between": head + tail}[direction]
    return max(c, _whole(codec, window_frames) - taken)


def head(codec: Codec, source: Frames, context: int) -> UInt8[np.ndarray, "K Y X 3"]:
    """The last frames of a clip, as many as may start a canvas."""
    count = min(context, len(source))
    return source[len(source) - count + (count - 1) % codec.config.temporal_compression :]


def tail(codec: Codec, source: Frames, context: int) -> tuple[UInt8[np.ndarray, "K Y X 3"], int]:
    """(the first frames of a clip, as many as fill latents further on; how many of them are the clip's own): a clip of
    fewer frames than a latent is held."""
    c = codec.config.temporal_compression
    count = max(1, min(context, len(source)) // c) * c
    tail = source[:count]
    return np.concatenate([tail, np.repeat(tail[-1:], count - len(tail), axis=0)]), len(tail)


def _whole(codec: Codec, num_frames: int) -> int:
    """The least 1 + c n that is not below."""
    return count_frames(codec, 1 + latent_of(codec, num_frames - 1))


def _shape(codec: Codec, num_frames: int, source: Frames) -> tuple[int, int, int]:
    return codec.config.latent_shape(num_frames, *source.shape[1:3])[:3]


def _pixels_of(codec: Codec, canvas: Canvas, source: Frames) -> Bool[np.ndarray, "T Y X"]:
    """Pixels of a clip that begins the canvas which known tokens code."""
    known = canvas.known[[latent_of(codec, frame) for frame in range(len(source))]]
    for axis in (1, 2):
        known = np.repeat(known, source.shape[axis] // known.shape[axis], axis=axis)
    return known


def _runs(flags: Bool[np.ndarray, " T"]) -> tuple[tuple[int, int], ...]:
    """Runs [first, end) of true flags."""
    edges = np.flatnonzero(np.diff(np.pad(flags.astype(np.int8), 1)))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))
