"""The packing plan: which clips, prefixes and captions each row of each step holds, as a pure function.

    clips of a split, sorted by length ─► positions 0, 1, 2, … of an endless sequence of epochs (`EpochOrder`)
    window w = positions [w·c, (w+1)·c)  ─► packed on its own into R rows ─► R / B steps of rows of similar cost

An epoch is the clips' number of consecutive positions and visits every clip once. Its order goes round the length
strata again and again (one clip of each, chosen by a Feistel permutation), so that any stretch of it has nearly the
data set's mixture of lengths and R rows can be filled to the brim with a fixed number of clips. Nothing is carried
from window to window, except that what did not fit in window w-1 is offered the gaps of window w; a resume at any
step packs two windows.
"""

import collections
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from data_pipeline.caption_draw import CaptionDraw, check_weights
from data_pipeline.epoch_order import GOLDEN, EpochOrder
from data_pipeline.errors import UserError
from data_pipeline.permutation import key_from, shuffle, uniform
from data_pipeline.row_fitting import Capacity, Fit, fit_rows
from data_pipeline.shards import Index

MIN_WINDOW_CLIPS = 1_024
MAX_WINDOW_CLIPS = 262_144
BALANCED_STEPS = 32  # steps a window needs for rows of similar cost to share a step (max over mean about 1.03)
SCANNED_ROWS = 256  # enough to learn how full rows get
MAX_UNFIT_MEAN, MAX_UNFIT = 0.004, 0.01
DURATIONS = ("full", "drawn")


@dataclass(frozen=True)
class PackingConfig:
    """A row's capacities (video tokens L, text tokens S, segments G), the rows B of a step, and how clips are cut.

    `durations`: "full" uses whole clips; "drawn" a prefix of uniformly many latent frames from `min_frames` to the
    whole clip, or one frame with probability `image_fraction`. Clips longer than a row are cut to it in both.
    `window_steps`: steps that are packed together, 0 = as many as balance needs, but at most an epoch.
    `max_caption_tokens`: longer captions are truncated, 0 = `row_text`. `caption_weights`: how often a caption of each
    source is drawn (`caption_draw.py`), empty = any caption of a clip as often as the others.
    """

    row_tokens: int
    row_text: int
    row_segments: int
    batch_rows: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    durations: str = "full"
    min_frames: int = 1
    image_fraction: float = 0.0
    window_steps: int = 0
    max_caption_tokens: int = 0
    caption_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("row_tokens", "row_text", "row_segments", "batch_rows", "min_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1")
        for name in ("window_steps", "max_caption_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, but must be 0 (automatic) or more")
        if self.patch_size[0] != 1 or len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise UserError(f"patch_size is {self.patch_size}, but must be (1, rows, columns): a patch is in one frame")
        if self.durations not in DURATIONS:
            raise UserError(f"durations is {self.durations!r}; choose one of {', '.join(DURATIONS)}")
        if not 0 <= self.image_fraction <= 1:
            raise UserError(f"image_fraction is {self.image_fraction}, but must be between 0 and 1")
        if self.durations == "full" and (self.image_fraction > 0 or self.min_frames > 1):
            raise UserError(
                f"image_fraction is {self.image_fraction} and min_frames {self.min_frames}, but durations 'full' uses "
                "whole clips: set durations='drawn', or leave them at 0 and 1"
            )
        check_weights(self.caption_weights)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.row_tokens, self.row_text, self.row_segments)

    @property
    def caption_limit(self) -> int:
        return min(self.max_caption_tokens or self.row_text, self.row_text)


class Placement(NamedTuple):
    """A sample of a row: record number in the index, latent frames of its prefix, number of its caption (-1: none)."""

    record: int
    frames: int
    caption: int


@dataclass(frozen=True)
class _Clips:
    """The plannable clips of a split, sorted by length. `frames` is already cut to the row."""

    record: np.ndarray
    frames: np.ndarray
    frame_tokens: np.ndarray
    counts: dict[str, int]


@dataclass(frozen=True)
class _Samples:
    """Clips drawn for consecutive positions: all [n] int64; `clip` numbers the sorted clips."""

    clip: np.ndarray
    frames: np.ndarray
    caption: np.ndarray
    text: np.ndarray

    def take(self, chosen: np.ndarray) -> "_Samples":
        return _Samples(*(getattr(self, name)[chosen] for name in ("clip", "frames", "caption", "text")))

    def join(self, other: "_Samples") -> "_Samples":
        names = ("clip", "frames", "caption", "text")
        return _Samples(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True)
class Window:
    """R packed rows in the order of their steps; row r holds samples [offsets[r], offsets[r+1]).

    `num_cut` samples were shortened to fit, `unplaced` are offered to the next window, and the `left_out` record
    numbers (of the previous window's unplaced) fit nowhere.
    """

    offsets: Int64[np.ndarray, " rows_and_end"]
    record: Int64[np.ndarray, " n"]
    frames: Int64[np.ndarray, " n"]
    caption: Int64[np.ndarray, " n"]
    tokens: Int64[np.ndarray, " n"]
    text: Int64[np.ndarray, " n"]
    num_cut: int
    left_out: Int64[np.ndarray, " m"]

    def row_sums(self, values: np.ndarray) -> np.ndarray:
        """[R]: `values` of the samples, summed by row."""
        return np.add.reduceat(values, self.offsets[:-1]) if len(values) else np.zeros(len(self.offsets) - 1)


class Plan:
    """Rows of every step of an endless run over one split of an index.

    Raises UserError when the split is empty or no clip fits into a row. `clips_per_window`, when it is known from
    another process's plan of the same arguments, saves the scan that finds it.
    """

    def __init__(
        self, index: Index, cfg: PackingConfig, seed: int, fingerprint: str, split: str = "train",
        clips_per_window: int | None = None,
    ):  # fmt: skip
        self.cfg, self.seed, self.split = cfg, seed, split
        self._index = index
        self._key = key_from("plan", fingerprint, seed, split)
        self._clips = _plannable_clips(index, cfg, split)
        self._order = EpochOrder(len(self._clips.record), key_from(self._key, "order"))
        self._captions = CaptionDraw(index, cfg.caption_weights, self._key)
        self._unfit: dict[tuple[int, int, int], tuple[float, float]] = {}  # a large window takes seconds to fit
        self._windows: collections.OrderedDict[int, tuple[Window, _Samples]] = collections.OrderedDict()
        clips_per_row = self._clips_per_row()
        self.window_steps = cfg.window_steps or _automatic_window_steps(
            clips_per_row * cfg.batch_rows, self._order.num_clips
        )
        self.rows_per_window = self.window_steps * cfg.batch_rows
        self.clips_per_window = clips_per_window or self._certify(clips_per_row)

    @property
    def num_clips(self) -> int:
        """Clips that the plan visits once an epoch."""
        return self._order.num_clips

    @property
    def steps_per_epoch(self) -> float:
        return self.window_steps * self.num_clips / self.clips_per_window

    def row(self, step: int, row: int) -> tuple[Placement, ...]:
        """The samples of global row `row` of step `step`."""
        window = self.window(step // self.window_steps)
        number = step % self.window_steps * self.cfg.batch_rows + row
        return tuple(
            Placement(int(window.record[i]), int(window.frames[i]), int(window.caption[i]))
            for i in range(window.offsets[number], window.offsets[number + 1])
        )

    def window(self, number: int) -> Window:
        """The packed rows of steps `[number * window_steps, (number + 1) * window_steps)`."""
        return self._packed(number)[0]

    def report(self, num_windows: int = 4, ranks: int = 64) -> dict[str, Any]:
        """Shares over the first `num_windows` windows, and what the plan does to the data set.

        `imbalance` is the mean over steps of the largest rank's attention cost (Σ tokens²) over the mean rank's,
        for `ranks` ranks with contiguous rows, or `batch_rows` ranks if those are fewer or do not divide.
        """
        cfg = self.cfg
        windows = [self.window(w) for w in range(num_windows)]
        num_rows = num_windows * self.rows_per_window
        placed = np.array([[len(w.tokens), w.tokens.sum(), w.text.sum(), w.num_cut] for w in windows]).sum(axis=0)
        samples, tokens, text, cut = (int(total) for total in placed)
        filled = [tokens / cfg.row_tokens, text / cfg.row_text, samples / cfg.row_segments]
        ranks = ranks if cfg.batch_rows % ranks == 0 else cfg.batch_rows
        return {
            **self._clips.counts,
            "truncated_captions": _num_truncated(self._index, cfg),
            "without_weighted_caption": int(self._captions.lacks_names(self._clips.record).sum()),
            "steps_per_epoch": self.steps_per_epoch,
            "clips_per_window": self.clips_per_window,
            "rows_per_window": self.rows_per_window,
            "windows_scanned": num_windows,
            "padding": 1 - tokens / (num_rows * cfg.row_tokens),
            "text_padding": 1 - text / (num_rows * cfg.row_text),
            "segments_per_row": samples / num_rows,
            "binding": ("row_tokens", "row_text", "row_segments")[int(np.argmax(filled))],
            "left_out": sum(len(w.left_out) for w in windows) / (num_windows * self.clips_per_window),
            "cut_to_fit": cut / (num_windows * self.clips_per_window),
            "ranks": ranks,
            "imbalance": float(np.mean([_imbalance(w, self.window_steps, ranks) for w in windows])),
        }

    def _draw(self, start: int, stop: int) -> _Samples:
        """The samples of positions `[start, stop)`: clip, drawn prefix, drawn caption and its length."""
        epoch, clip = self._order.clips(np.arange(start, stop))
        frames = self._clips.frames[clip]
        if self.cfg.durations == "drawn":
            frames = self._draw_frames(frames, clip, start)
        record = self._clips.record[clip]
        caption, text = self._captions.draw(epoch, record)
        return _Samples(clip, frames, caption, np.minimum(text, self.cfg.caption_limit))

    def _draw_frames(self, frames: np.ndarray, clip: np.ndarray, start: int) -> np.ndarray:
        """Prefix lengths: uniform for each clip, but spread evenly over neighbours in length.

        A golden-ratio rotation along the sorted clips, with an offset for the window, keeps the window's total almost
        constant, so that a fixed number of clips fills its rows.
        """
        rank = np.empty(len(clip), np.int64)
        rank[np.argsort(clip, kind="stable")] = np.arange(len(clip))
        draw = (rank * GOLDEN + uniform(key_from(self._key, "duration"), start)) % 1.0
        least = np.minimum(self.cfg.min_frames, frames)
        share = self.cfg.image_fraction
        stretched = np.maximum(draw - share, 0) / max(1 - share, 1e-9)
        drawn = np.minimum(least + np.floor(stretched * (frames - least + 1)).astype(np.int64), frames)
        return np.where(draw < share, 1, drawn)

    def _clips_per_row(self) -> float:
        """Clips that a row holds on average if packing were perfect."""
        samples = self._draw(0, min(4_096, max(256, self.num_clips)))
        return max(1.0, len(samples.clip) / self._demand(samples).sum(axis=1).max())

    def _certify(self, clips_per_row: float) -> int:
        """The most clips that a window's rows really take, found by packing: a few rows, then a window."""
        few = min(self.rows_per_window, SCANNED_ROWS)
        clips = self._most_clips(int(1.03 * clips_per_row * few), few)
        if few < self.rows_per_window:
            clips = self._most_clips(math.ceil(1.003 * clips / few * self.rows_per_window), self.rows_per_window)
        if self.cfg.durations == "drawn":
            return clips  # what does not fit is cut
        left = max(self._share_unfit(w, clips, self.rows_per_window)[0] for w in range(_num_scanned(clips)))
        return max(clips - round(left * clips), self.rows_per_window)

    def _most_clips(self, clips: int, num_rows: int) -> int:
        """Lowers `clips` until `num_rows` rows take them; one clip a row always fits."""
        num_windows = _num_scanned(clips)
        while clips > num_rows:
            unfit = np.array([self._share_unfit(w, clips, num_rows) for w in range(num_windows)])
            if unfit[:, 0].mean() <= MAX_UNFIT_MEAN and unfit[:, 0].max() <= MAX_UNFIT:
                break
            clips -= max(1, int(clips * max(0.001, 0.9 * unfit[:, 1].mean())))
        return max(clips, num_rows)

    def _share_unfit(self, number: int, clips: int, num_rows: int) -> tuple[float, float]:
        """Shares of a window's clips, and of what binds in its rows, that do not fit or are cut to fit."""
        asked = number, clips, num_rows
        if asked not in self._unfit:
            self._unfit[asked] = self._find_unfit(*asked)
        return self._unfit[asked]

    def _find_unfit(self, number: int, clips: int, num_rows: int) -> tuple[float, float]:
        samples = self._draw(number * clips, (number + 1) * clips)
        fit = self._fit(samples, clips, num_rows)
        demand = self._demand(samples)
        binding = demand[demand.sum(axis=1).argmax()]
        lost = np.where(fit.row < 0, 1.0, 1 - fit.frames / samples.frames)
        return float((lost > 0).mean()), float((binding * lost).sum() / binding.sum())

    def _demand(self, samples: _Samples) -> np.ndarray:
        return self.cfg.capacity.demand(samples.frames * self._clips.frame_tokens[samples.clip], samples.text)

    def _fit(self, samples: _Samples, num_first: int, num_rows: int) -> Fit:
        tokens = self._clips.frame_tokens[samples.clip]
        may_cut = self.cfg.durations == "drawn"
        return fit_rows(samples.frames, tokens, samples.text, num_rows, self.cfg.capacity, may_cut, num_first)

    def _packed(self, number: int) -> tuple[Window, _Samples]:
        """A window and its unplaced samples; the last few are kept, as consecutive steps share them."""
        if number not in self._windows:
            unplaced = self._unplaced(number - 1)
            self._windows[number] = self._pack(number, unplaced)
            while len(self._windows) > 3:
                self._windows.popitem(last=False)
        self._windows.move_to_end(number)
        return self._windows[number]

    def _unplaced(self, number: int) -> _Samples:
        """What window `number` could not place of its own clips: whatever came to it from before does not matter."""
        if number in self._windows:
            return self._windows[number][1]
        samples = self._own(max(number, 0))
        return samples.take(
            self._fit(samples, len(samples.clip), self.rows_per_window).row < 0
            if number >= 0
            else np.zeros(0, np.int64)
        )

    def _own(self, number: int) -> _Samples:
        return self._draw(number * self.clips_per_window, (number + 1) * self.clips_per_window)

    def _pack(self, number: int, from_before: _Samples) -> tuple[Window, _Samples]:
        own = self._own(number)
        num_own = len(own.clip)
        samples = own.join(from_before)
        fit = self._fit(samples, num_own, self.rows_per_window)
        place = self._row_places(fit, samples, number)[fit.row]
        kept = np.flatnonzero(fit.row >= 0)
        kept = kept[np.argsort(place[kept], kind="stable")]
        clip, frames = samples.clip[kept], fit.frames[kept]
        counts = np.bincount(place[kept], minlength=self.rows_per_window)
        window = Window(
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            record=self._clips.record[clip],
            frames=frames,
            caption=samples.caption[kept],
            tokens=frames * self._clips.frame_tokens[clip],
            text=samples.text[kept],
            num_cut=int((fit.frames != samples.frames)[fit.row >= 0].sum()),
            left_out=self._clips.record[from_before.clip[fit.row[num_own:] < 0]],
        )
        return window, own.take(fit.row[:num_own] < 0)

    def _row_places(self, fit: Fit, samples: _Samples, number: int) -> np.ndarray:
        """[R]: where each fitted row goes: sorted by attention cost into steps, then steps and their rows shuffled."""
        placed = fit.row >= 0
        tokens = (fit.frames * self._clips.frame_tokens[samples.clip]).astype(np.float64)
        cost = np.bincount(fit.row[placed], tokens[placed] ** 2, minlength=self.rows_per_window)
        by_cost = np.argsort(cost, kind="stable").reshape(self.window_steps, self.cfg.batch_rows)
        by_cost = by_cost[shuffle(key_from(self._key, "steps", number), self.window_steps)]
        place = np.empty(self.rows_per_window, np.int64)
        for step, rows in enumerate(by_cost):
            rows = rows[shuffle(key_from(self._key, "rows", number, step), len(rows))]
            place[rows] = step * self.cfg.batch_rows + np.arange(len(rows))
        return place


def _num_scanned(clips_per_window: int) -> int:
    return int(np.clip(20_000 // max(clips_per_window, 1), 1, 8))


def _automatic_window_steps(clips_per_step: float, num_clips: int) -> int:
    """Enough steps to pack well and to balance, at most an epoch and MAX_WINDOW_CLIPS."""
    wanted = max(BALANCED_STEPS, math.ceil(MIN_WINDOW_CLIPS / clips_per_step))
    return max(1, min(wanted, int(min(num_clips, MAX_WINDOW_CLIPS) // clips_per_step)))


def _plannable_clips(index: Index, cfg: PackingConfig, split: str) -> _Clips:
    """Clips sorted by length, without those of which not even one frame fits. Raises UserError when none is left."""
    record = index.select(split)
    if not len(record):
        raise UserError(f'the data set has no clips in its "{split}" split ({len(index)} in all): add clips to it')
    _, patch_rows, patch_columns = cfg.patch_size
    height, width, frames = (np.asarray(a)[record].astype(np.int64) for a in (index.height, index.width, index.frames))
    frame_tokens = (height // patch_rows) * (width // patch_columns)
    fits = (frame_tokens >= 1) & (frame_tokens <= cfg.row_tokens)
    if not fits.any():
        raise UserError(_nothing_fits(cfg, height, width))
    cut = np.minimum(frames, cfg.row_tokens // np.maximum(frame_tokens, 1))
    counts = {
        "clips": len(record),
        "frame_too_large_or_small": int((~fits).sum()),
        "cropped_to_patches": int(((height % patch_rows + width % patch_columns > 0) & fits).sum()),
        "cut_to_row": int(((cut < frames) & fits).sum()),
    }
    kept = np.flatnonzero(fits)
    length = (cut * frame_tokens)[kept]
    kept = kept[np.argsort(length.astype(np.min_scalar_type(length.max())), kind="stable")]  # 16 bits sort by radix
    return _Clips(record[kept].astype(np.int64), cut[kept], frame_tokens[kept], counts)


def _nothing_fits(cfg: PackingConfig, height: np.ndarray, width: np.ndarray) -> str:
    _, rows, columns = cfg.patch_size
    smallest = int(np.argmin(height * width))
    needs = (height[smallest] // rows) * (width[smallest] // columns)
    return (
        f"no clip fits into a row: one latent frame of the smallest clip ({height[smallest]}x{width[smallest]}) is "
        f"{needs} tokens with patch_size {cfg.patch_size}, row_tokens is {cfg.row_tokens}: raise row_tokens to that, "
        "or use patches that the frames hold"
    )


def _num_truncated(index: Index, cfg: PackingConfig) -> int:
    return int((np.asarray(index.caption_tokens) > cfg.caption_limit).sum())


def _imbalance(window: Window, num_steps: int, ranks: int) -> float:
    cost = window.row_sums(window.tokens.astype(np.float64) ** 2).reshape(num_steps, ranks, -1).sum(axis=-1)
    return float((cost.max(axis=1) / cost.mean(axis=1)).mean())
