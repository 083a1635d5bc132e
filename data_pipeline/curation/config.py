"""What a curation does, as frozen dataclasses; `configs/curation_default.py` writes them out with their sources."""

import re
from dataclasses import dataclass, field

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import SMALLEST_VOCAB
from data_pipeline.walk import DROID_GROUP, group_pattern

FORMATS = ("array_record", "webdataset")


@dataclass(frozen=True)
class ShotConfig:
    """Where a source is cut. Seconds but for the thresholds, which are those of PySceneDetect's detectors.

    A cut whose picture comes back within `flash_s` is a flash. `dissolve_s` are the lengths of cross-fades looked for
    (none: cross-fades stay). `trim_s` is taken off both ends of a shot at each cut, where encoders smear two pictures.
    """

    adaptive_threshold: float = 3.0
    min_content: float = 15.0
    fade_luma: float = 12.0
    flash_s: float = 0.4
    dissolve_s: tuple[float, ...] = (0.5, 1.0, 1.5)
    trim_s: float = 0.0


@dataclass(frozen=True)
class FilterConfig:
    """What a clip must be. Sides are pixels of the picture without its borders, aspect is width / height.

    `sharpness` is the variance of the Laplacian of the 8-bit luma at 256 pixels of width; `luma` its mean (0 to 255),
    `clipped` the share of pixels at either end; `motion` the mean optical flow in short sides a second; `shake` the
    change of the picture's median flow from one frame to the next, in short sides; `text` the share of the picture
    under lines of text that stay. Images (one frame) pass the limits on duration, rate, bits, motion and text where
    `images` says so.
    """

    min_duration_s: float = 2.0
    max_duration_s: float = 20.0
    min_short_side: int = 256
    min_aspect: float = 1 / 3
    max_aspect: float = 3.0
    min_fps: float = 16.0
    min_bits_per_pixel: float = 0.02
    min_sharpness: float = 10.0
    min_luma: float = 15.0
    max_luma: float = 240.0
    max_clipped: float = 0.8
    min_motion: float = 0.004
    max_motion: float = 3.0
    max_shake: float = 0.012
    max_text: float = 0.008
    images: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_duration_s <= self.max_duration_s:
            raise UserError(
                f"filters.min_duration_s is {self.min_duration_s} and max_duration_s {self.max_duration_s}: the first "
                "must be above 0 and no more than the second"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A model of yours: `function` is `package.module:name`, called with a clip's frames, uint8 [T, Y, X, 3].

    `num_frames` evenly spaced frames are given to it; `accelerators` of them are asked for (Ray's GPUs). For scores,
    clips below `least` or above `most` are rejected.
    """

    function: str = ""
    num_frames: int = 8
    accelerators: float = 0.0
    least: float = float("-inf")
    most: float = float("inf")

    def __post_init__(self) -> None:
        if self.function and not re.fullmatch(r"[\w.]+:\w+", self.function):
            raise UserError(f"a model's function is {self.function!r}, but must be written as package.module:name")


@dataclass(frozen=True)
class DuplicateConfig:
    """Which clips count as the same. Perceptual hashes (64 bits) propose a pair if two of their pictures differ in at
    most `max_bits`; it is one if their signatures (or the embedder's vectors) agree in cosine by `min_similarity`, or
    without an embedder, where they overlap by `min_overlap` of the shorter and `min_overlap_s`."""

    max_bits: int = 10
    min_similarity: float = 0.94
    min_overlap: float = 0.6
    min_overlap_s: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.min_overlap <= 1 and self.min_overlap_s > 0):
            raise UserError(
                f"duplicates.min_overlap is {self.min_overlap}, but must be above 0 and at most 1, and min_overlap_s "
                f"{self.min_overlap_s}, but must be above 0"
            )


@dataclass(frozen=True)
class BalanceConfig:
    """`num_clusters` of similar clips (0: no balancing); a cluster keeps at most `quota` times the mean size."""

    num_clusters: int = 0
    quota: float = 3.0


@dataclass(frozen=True)
class OutputConfig:
    """`short_sides`: one data set each, of the clips that are at least as large; 0 is the size that they have.
    `tokenizer`: a model file, or a data set whose tokenizer is to be shared; by default one is trained on the captions.
    """

    short_sides: tuple[int, ...] = (0,)
    format: str = "array_record"
    records_per_shard: int = 1024
    heldout_fraction: float = 0.05
    group_regex: str = DROID_GROUP
    vocab_size: int = 8192
    tokenizer: str = ""
    license: str = "unknown"
    require_caption: bool = False

    def __post_init__(self) -> None:
        group_pattern(self.group_regex)
        if self.format not in FORMATS:
            raise UserError(f"output.format is {self.format!r}, which is none of {', '.join(FORMATS)}")
        if not self.short_sides or len(set(self.short_sides)) < len(self.short_sides) or min(self.short_sides) < 0:
            raise UserError(f"output.short_sides is {self.short_sides}: give different sizes in pixels, or 0 for as is")
        if self.records_per_shard < 1 or self.vocab_size < SMALLEST_VOCAB:
            raise UserError(
                f"output.records_per_shard is {self.records_per_shard} and vocab_size {self.vocab_size}: at "
                f"least 1 and {SMALLEST_VOCAB} (bytes and a few letters)"
            )
        if not 0 <= self.heldout_fraction < 1:
            raise UserError(f"output.heldout_fraction={self.heldout_fraction} must be at least 0 and below 1")


@dataclass(frozen=True)
class CurationConfig:
    """Everything that decides which bytes come out. `scores` are models by the name of their score."""

    shots: ShotConfig = field(default_factory=ShotConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    scores: dict[str, ModelConfig] = field(default_factory=dict)
    embedder: ModelConfig = field(default_factory=ModelConfig)
    captioner: ModelConfig = field(default_factory=ModelConfig)
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
