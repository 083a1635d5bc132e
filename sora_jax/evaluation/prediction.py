"""Video prediction: a clip's first frames are shown, the rest is made, and compared with the rest as it was.

As in stochastic video generation (Denton & Fergus 2018, arXiv:1802.07687): several futures of each clip are sampled,
PSNR, SSIM and LPIPS are measured frame by frame on 8-bit pixels, and told of the *best* future of each clip as well as
of their *mean*, since where the future is open a good sample may still be another one. Beside them *holding*, the last
known frame repeated, and the truth through the autoencoder (*autoencoded*), the best that a sample can look.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardReader
from data_pipeline.video_io import Frames, decode_record
from sora_jax.diffusion.generation import Request
from sora_jax.evaluation.inputs import clip_numbers
from sora_jax.evaluation.reconstruction import Reconstruction, lpips_of_pairs, to_legal
from sora_jax.generation import modes
from sora_jax.generation.loading import TrainedRun
from sora_jax.generation.modes import Plan
from sora_jax.models.lpips_weights import Lpips

LABELS = {"psnr_db": "PSNR [dB]", "ssim": "SSIM", "lpips": "LPIPS"}
LOWER_IS_BETTER = {"lpips"}
Curves = dict[str, Float64[np.ndarray, "_ _"]]
"""Measure → its value [clip, new frame]."""


@dataclass(frozen=True, eq=False)
class Case:
    """One clip, of which the first `context` frames are known. `number` is that of its record."""

    number: int
    caption: str
    fps: float
    clip: Frames
    context: int
    plan: Plan

    @property
    def truth(self) -> Frames:
        return self.clip[self.context :]

    def request(self, seed: int) -> Request:
        _, height, width, _ = self.clip.shape
        return Request(self.caption, width, height, self.plan.num_frames, self.fps, seed, canvas=self.plan.canvas)

    def future(self, frames: Frames) -> UInt8[np.ndarray, "U Y X 3"]:
        """The new frames of a result."""
        return self.plan.assemble(frames)[self.context :]


def read_cases(
    run: TrainedRun, real: Path, split: str, most: int, num_frames: int, context: int | None
) -> tuple[list[Case], int]:
    """Up to `most` clips of a split, evenly spread, each cut to `num_frames` (0: as long as the run's previews), of
    which the first `context` are known (None: half); and how many were too short.

    Raises UserError if none is long enough, or where nothing would be left to make.
    """
    reader, codec = ShardReader(real, "clip"), run.sampler.codec
    c, x = codec.config.temporal_compression, codec.config.spatial_compression
    wanted = num_frames or run.preview.num_frames
    length = 1 + (wanted - 1) // c * c
    known = 1 + (length - 1) // c // 2 * c if context is None else context
    if not 1 <= known < length:
        raise UserError(
            f"{known} known frames of {length} leave none to predict, or none to start from: --context must be from 1 "
            f"to {length - 1}, or --max_frames larger"
        )
    if (known - 1) % c:
        legal = 1 + (known - 1) // c * c
        larger = f" or {legal + c}" if legal + c < length else ""
        raise UserError(
            f"--context is {known}, but the autoencoder codes 1 + {c} n frames: {legal} would be shown; take {legal}"
            f"{larger}"
        )
    numbers, cases, short = clip_numbers(reader, split), [], 0
    for number in numbers[np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)]:
        record = reader.read(int(number))
        frames, _ = decode_record(record, length)
        if len(frames) < length:
            short += 1
            continue
        clip = to_legal(frames, c, x * run.sampler.layout.patch_size[1])
        plan = modes.extend_forward(codec, run.sampler.layout, clip[:known], length - known, known)
        cases.append(
            Case(int(number), record.captions[0].text if record.captions else "", record.fps, clip, known, plan)
        )
    if not cases:
        raise UserError(f"all of {short} {split} clips of {real} are shorter than {length} frames: lower --max_frames")
    return cases, short


def measure_futures(
    cases: Sequence[Case], futures: Sequence[UInt8[np.ndarray, "_ _ _ 3"]], loaded: Lpips | None
) -> Curves:
    """Each clip's PSNR, SSIM and, with its weights, LPIPS at each new frame."""
    pairs = [
        Reconstruction(a[None], b[None])
        for case, future in zip(cases, futures, strict=True)
        for a, b in zip(case.truth, future, strict=True)
    ]
    rows = {"psnr_db": [pair.psnr_db for pair in pairs], "ssim": [pair.ssim for pair in pairs]}
    if loaded is not None:
        rows["lpips"] = lpips_of_pairs(loaded, pairs)
    return {name: np.array(values).reshape(len(cases), -1) for name, values in rows.items()}


def held(case: Case) -> UInt8[np.ndarray, "T Y X 3"]:
    """The last known frame, over and over."""
    return np.repeat(case.clip[case.context - 1 : case.context], len(case.truth), axis=0)


def autoencoded(run: TrainedRun, cases: Sequence[Case]) -> Iterator[UInt8[np.ndarray, "_ _ _ 3"]]:
    """The truth's new frames as the autoencoder gives them back, of the whole clip."""
    codec = run.sampler.codec
    for case in cases:
        yield codec.decode(codec.encode(case.clip[None]))[0][case.context :]


def best_of(trials: Sequence[Curves]) -> Curves:
    """By each measure, each clip's best trial by its mean over the frames."""
    found = {}
    for name in trials[0]:
        values = np.stack([trial[name] for trial in trials])
        means = values.mean(axis=2)
        chosen = means.argmin(axis=0) if name in LOWER_IS_BETTER else means.argmax(axis=0)
        found[name] = values[chosen, np.arange(values.shape[1])]
    return found


def mean_over(trials: Sequence[Curves]) -> Curves:
    """The mean of the trials, clip by clip and frame by frame."""
    return {name: np.mean([trial[name] for trial in trials], axis=0) for name in trials[0]}


def draw_curves(groups: dict[str, Curves], path: Path) -> None:
    """A panel for each measure: its mean over the clips, by new frame, of every group."""
    names = list(next(iter(groups.values())))
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for group, curves in groups.items():
            values = curves[name].mean(axis=0)
            axis.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=group)
        axis.set(xlabel="new frame", ylabel=LABELS[name])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
