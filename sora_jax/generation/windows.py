"""Long videos: one endless stream of latents, made by windows that overlap.

Window 0 is a canvas like any other. The canvas of a later one holds what was made before: its latents 1 … m are the
stream's last m, exactly as they were sampled, and latent 0, which codes one frame, is the frame before these, encoded
as an image. The rest is new. The decoder runs over the stream once, with its causal cache, so that it knows no windows;
nothing but m latents and the frames that they code is kept. Every window has one shape, and what a shorter video does
not need of its last window is thrown away: it is the beginning of a longer one, bit by bit.

Where a shot begins, the window before it ends, and the next one follows another prompt.
"""

import dataclasses
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data_pipeline.errors import UserError
from sora_jax.diffusion.denoiser import SamplingConfig
from sora_jax.diffusion.generation import PackedSampler, Request
from sora_jax.diffusion.prompting import Canvas, count_frames, encode_window, latent_of
from sora_jax.generation.modes import extend_backward, held
from sora_jax.types import Frozen


@dataclass(frozen=True, eq=False)
class Shot:
    """From frame `start` on the video shows `prompt`; with an `image`, that is frame `start`."""

    start: int
    prompt: str
    image: UInt8[np.ndarray, "Y X 3"] | None = None


@dataclass(frozen=True)
class Windows:
    """How a long video is made: `latents` of a window, of which up to `overlap` (and the image before them) are known.

    `base` has the size, rate and seed of the video, and whatever else a request has. Raises UserError for windows
    that do not advance.
    """

    sampler: PackedSampler
    params: Any
    frozen: Frozen
    sampling: SamplingConfig
    base: Request
    latents: int
    overlap: int

    def __post_init__(self) -> None:
        if not 1 <= self.overlap <= self.latents - 2:
            c, codec = self.sampler.codec.config.temporal_compression, self.sampler.codec
            raise UserError(
                f"windows of {count_frames(codec, self.latents)} frames that overlap by {c * self.overlap}: the "
                f"overlap must be from {c} to {c * (self.latents - 2)} frames, and a window at least {1 + 2 * c}"
            )

    def frames(
        self, shots: Sequence[Shot], head: UInt8[np.ndarray, "K Y X 3"] | None = None, part: int = 0
    ) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
        """Frames without end. The first of `shots`, in order of time, begins at frame 0.

        `head`: known frames that the video begins with, 1 + c n of at most a window without one latent. `part` numbers
        the videos of a film that are cut together: each has noise of its own. Raises UserError for shots that begin
        within the same latent, and for a size or rate that the model has not.
        """
        stream = _Stream(self._fitting(shots), tuple(shots), head, part)
        known = {shot.start: shot.image for shot in shots if shot.image is not None}
        known |= dict(enumerate(() if head is None else head))
        number = count()
        for decoded in self.sampler.decode(stream.pieces()):
            for frame in decoded:
                shown = known.get(next(number), frame)
                stream.recent.append(shown)
                yield shown

    def room_before(self, num_known: int) -> int:
        """New frames of a window that ends with `num_known` frames of what follows, of which whole latents count."""
        c = self.sampler.codec.config.temporal_compression
        return count_frames(self.sampler.codec, self.latents) - c * min(self.overlap, max(1, num_known // c))

    def _fitting(self, shots: Sequence[Shot]) -> "Windows":
        """With rows that hold one window and the longest prompt: one compilation for all windows."""
        requests = [self.request(shot.prompt, 0, None) for shot in shots]
        sampler = self.sampler.fitting(requests)
        layout = dataclasses.replace(sampler.layout, row_tokens=sampler.num_tokens(requests[0]), row_segments=1)
        return dataclasses.replace(self, sampler=dataclasses.replace(sampler, layout=layout))

    def request(self, prompt: str, seed: int, canvas: Canvas | None) -> Request:
        """One window."""
        num_frames = count_frames(self.sampler.codec, self.latents)
        return dataclasses.replace(self.base, prompt=prompt, num_frames=num_frames, seed=seed, canvas=canvas)


def frames_before(
    windows: Windows, prompt: str, source: UInt8[np.ndarray, "T Y X 3"], num_new: int
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """`num_new` frames that lead to the first of `source`, in order of time; they are made from the last on.

    A window ends with the first frames of what follows it, as many as fill `overlap` latents, encoded as a window of
    their own: what an encoding says of its past can't be had before that is made. What is made waits on the disk, so
    that memory is bounded here too, and what a shorter extension makes ends a longer one. Raises UserError as `frames`.
    """
    windows = windows._fitting([Shot(0, prompt)])
    context = windows.sampler.codec.config.temporal_compression * windows.overlap
    front, lengths = source[:context], list[int]()
    with tempfile.TemporaryFile() as waiting:
        for number in count():
            window = _window_before(windows, prompt, front, number)
            waiting.write(window.tobytes())
            lengths.append(len(window))
            if sum(lengths) >= num_new:
                break
            front = np.concatenate([window, front])[:context]
        shape, left_out = front.shape[1:], sum(lengths) - num_new
        for number in reversed(range(len(lengths))):
            waiting.seek(sum(lengths[:number]) * front[0].nbytes)
            size = lengths[number] * front[0].nbytes
            yield from np.frombuffer(waiting.read(size), np.uint8).reshape(-1, *shape)[left_out:]
            left_out = 0


def _window_before(windows: Windows, prompt: str, front: np.ndarray, number: int) -> np.ndarray:
    """The new frames of one window, which ends with the first ones of `front`."""
    sampler = windows.sampler
    num_new = windows.room_before(len(front))
    plan = extend_backward(sampler.codec, sampler.layout, front, num_new, len(front))
    request = windows.request(prompt, window_seed(windows.base.seed, 0, number), plan.canvas)
    _, latents = next(sampler.sample(windows.params, windows.frozen, [request], windows.sampling, 1))
    return np.concatenate(list(sampler.decode([latents])))[:num_new]


class _Stream:
    """The latents of one video, piece by piece, and what the next window needs of the last ones."""

    def __init__(self, windows: Windows, shots: tuple[Shot, ...], head: np.ndarray | None, part: int):
        self.windows, self.shots, self.part = windows, shots, part
        self.codec, self.layout = windows.sampler.codec, windows.sampler.layout
        self.shape = windows.sampler.latent_shape(windows.request("", 0, None))
        self.tail = np.zeros((0, *self.shape[1:], self.codec.config.latent_channels), np.float32)
        self.recent: deque[np.ndarray] = deque(
            maxlen=1 + windows.overlap * self.codec.config.temporal_compression
        )  # frames as they are shown, up to the stream's last latent
        self.begins = [latent_of(self.codec, shot.start) for shot in shots]
        self.length = 0  # latents so far
        self.head = head
        if self.begins[0] != 0 or any(a >= b for a, b in zip(self.begins, self.begins[1:], strict=False)):
            c = self.codec.config.temporal_compression
            raise UserError(
                f"shots begin at frames {', '.join(str(shot.start) for shot in shots)}, but the first must at 0, and "
                f"the others within different groups of {c} frames, in order"
            )

    def pieces(self) -> Iterator[Float[np.ndarray, "F H W C"]]:
        """New latents of each window; `recent` must have got their frames before the next is asked for."""
        for number in count():
            latents, known, first = self._canvas()
            shot = max(i for i, begin in enumerate(self.begins) if begin <= self.length)
            if not known.all():
                seed = window_seed(self.windows.base.seed, self.part, number)
                canvas = Canvas(latents, known) if known.any() else None
                request = self.windows.request(self.shots[shot].prompt, seed, canvas)
                sample = self.windows.sampler.sample
                _, latents = next(sample(self.windows.params, self.windows.frozen, [request], self.windows.sampling, 1))
            new = latents[first : first + self._room(shot, len(latents) - first)]
            yield new
            self.tail = np.concatenate([self.tail, new])[-self.windows.overlap :]
            self.length += len(new)

    def _canvas(self) -> tuple[np.ndarray, np.ndarray, int]:
        """(latents, known tokens, index of the first new latent) of the next window."""
        latents = np.zeros((*self.shape, self.codec.config.latent_channels), np.float32)
        known = np.zeros(self.layout.grid(self.shape), bool)
        overlap = min(self.windows.overlap, max(0, self.length - 1))  # the video's latent 0 is not like the others
        first = 1 + overlap if self.length else 0
        if self.length:
            before = self.recent[-1 - overlap * self.codec.config.temporal_compression]
            latents[0] = encode_window(self.codec, before[None], is_first=True)[0]
            latents[1:first] = self.tail[len(self.tail) - overlap :]
            known[:first] = True
        elif self.head is not None:
            coded = encode_window(self.codec, self.head, is_first=True)
            latents[: len(coded)], known[: len(coded)] = coded, True
        for shot, begin in zip(self.shots, self.begins, strict=True):
            place = first + begin - self.length
            if shot.image is not None and first <= place < len(latents):
                still = held(self.codec, shot.image, is_first=begin == 0)
                latents[place] = encode_window(self.codec, still, is_first=begin == 0)[0]
                known[place] = True
        return latents, known, first

    def _room(self, shot: int, room: int) -> int:
        """New latents of this window: as many as fit, but the next shot takes over where it begins, and a key frame
        of it is reached first."""
        if shot + 1 == len(self.shots):
            return room
        following = self.shots[shot + 1]
        return min(room, self.begins[shot + 1] - self.length + (following.image is not None))


def window_seed(seed: int, part: int, number: int) -> int:
    """The noise of a window follows from the video's seed and its number; the first has the video's own."""
    if part == number == 0:
        return seed
    return int(np.random.SeedSequence([seed, part, number]).generate_state(1)[0] >> 1)
