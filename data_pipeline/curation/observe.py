"""One pass over the frames of a source: what every later stage looks at, in kilobytes a second of video.

Every frame leaves a thumbnail, and PySceneDetect sees it; two times a second a sample is taken: brightness of rows and
columns, sharpness, exposure, lines of text, a small picture, and the optical flow (DIS, Kroeger et al. 2016) to the
next two frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float16, Float32, UInt8
from scenedetect import AdaptiveDetector, FrameTimecode, ThresholdDetector

from data_pipeline.curation.config import ShotConfig
from data_pipeline.curation.lettering import lettering
from data_pipeline.frames import Frame

PROXY_WIDTH = 256  # PySceneDetect scales to about this width too
THUMB_WIDTH, THUMB_HEIGHT = 32, 18
PICTURE_WIDTH = 96
SAMPLES_PER_S = 2.0
DARK_LUMA = 32  # bars are black (16 in limited range), and encoders ripple at their edges


@dataclass(frozen=True)
class Sample:
    """What is seen at one frame. `motion` and `shake` are in short sides a frame, NaN where no frame follows.

    `rows_lit` and `columns_lit` are the shares of each row and column that are brighter than `DARK_LUMA`, `rows_luma`
    and `columns_luma` their means; `text_bits` is where lines of text stand, packed along the width.
    """

    frame: int
    rows_lit: Float16[np.ndarray, " Y"]
    columns_lit: Float16[np.ndarray, " X"]
    rows_luma: Float16[np.ndarray, " Y"]
    columns_luma: Float16[np.ndarray, " X"]
    sharpness: float
    luma: float
    clipped: float
    motion: float
    shake: float
    picture: UInt8[np.ndarray, "y x 3"]
    text_bits: UInt8[np.ndarray, "v b"]
    text_width: int

    @property
    def text(self) -> Bool[np.ndarray, "v w"]:
        """Where lines of text stand."""
        return np.unpackbits(self.text_bits, axis=1, count=self.text_width).astype(bool)


@dataclass(frozen=True)
class Observation:
    """Of a whole source: `cuts` are frames that PySceneDetect says begin something new, unverified."""

    num_frames: int
    fps: float
    height: int
    width: int
    cuts: tuple[int, ...]
    thumbs: UInt8[np.ndarray, "T y x 3"]
    samples: tuple[Sample, ...]


def observe(frames: Iterable[Frame], fps: float, cfg: ShotConfig) -> Observation:
    """`frames` at a constant rate, of one size; full pictures are made of the samples alone. Raises `UserError` where
    the source cannot be read on."""
    cv2.setNumThreads(1)  # a pool has a process for each core
    detectors = (
        AdaptiveDetector(cfg.adaptive_threshold, min_scene_len=1, min_content_val=cfg.min_content),
        ThresholdDetector(cfg.fade_luma, min_scene_len=1),
    )
    every = max(3, round(fps / SAMPLES_PER_S))
    thumbs, samples, cuts = bytearray(), [], set()  # one buffer: stacking a list would hold all of them twice
    started: list[np.ndarray] = []
    number, height, width = -1, 0, 0
    last = proxy = None
    for number, frame in enumerate(frames):
        height, width = frame.size
        proxy = proxy if frame is last and proxy is not None else _proxy(frame)
        last = frame
        grey = cv2.cvtColor(proxy, cv2.COLOR_RGB2GRAY)
        timecode = FrameTimecode(number, fps=fps)
        bgr = np.ascontiguousarray(proxy[..., ::-1])
        cuts |= {cut.frame_num for detector in detectors for cut in detector.process_frame(timecode, bgr)}
        thumbs += cv2.resize(proxy, (THUMB_WIDTH, THUMB_HEIGHT), interpolation=cv2.INTER_AREA).tobytes()
        if number % every == 0:
            samples.append(_sample(number, frame.rgb(), proxy, grey))
            started = [grey]
        elif number % every <= 2:
            started.append(grey)
            samples[-1] = _with_motion(samples[-1], started)
    stacked = np.frombuffer(thumbs, np.uint8).reshape(-1, THUMB_HEIGHT, THUMB_WIDTH, 3)
    inside = tuple(sorted(cut for cut in cuts if 0 < cut <= number))
    return Observation(number + 1, fps, height, width, inside, stacked, tuple(samples))


def _proxy(frame: Frame) -> UInt8[np.ndarray, "y x 3"]:
    height, width = frame.size
    if frame.scaled is None or width <= PROXY_WIDTH:
        return _scaled(frame.rgb(), PROXY_WIDTH)
    return frame.scaled(max(8, round(height * PROXY_WIDTH / width)), PROXY_WIDTH)


def _scaled(rgb: np.ndarray, width: int) -> np.ndarray:
    """At most `width` wide; long pictures keep at least 8 rows."""
    if rgb.shape[1] <= width:
        return np.ascontiguousarray(rgb)
    return cv2.resize(rgb, (width, max(8, round(rgb.shape[0] * width / rgb.shape[1]))), interpolation=cv2.INTER_AREA)


def _sample(number: int, rgb: np.ndarray, proxy: np.ndarray, grey: np.ndarray) -> Sample:
    """Sharpness and exposure are those of the middle half of each side, which bars hardly ever reach."""
    full = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    lit, text = full > DARK_LUMA, lettering(full)
    height, width = grey.shape
    middle = grey[height // 4 : max(height // 4 + 1, 3 * height // 4), width // 4 : max(width // 4 + 1, 3 * width // 4)]
    return Sample(
        frame=number,
        rows_lit=lit.mean(axis=1).astype(np.float16),
        columns_lit=lit.mean(axis=0).astype(np.float16),
        rows_luma=full.mean(axis=1).astype(np.float16),
        columns_luma=full.mean(axis=0).astype(np.float16),
        sharpness=float(cv2.Laplacian(middle, cv2.CV_32F).var()),
        luma=float(middle.mean()),
        clipped=float(((middle <= 4) | (middle >= 251)).mean()),
        motion=float("nan"),
        shake=float("nan"),
        picture=_scaled(proxy, PICTURE_WIDTH),
        text_bits=np.packbits(text, axis=1),
        text_width=text.shape[1],
    )


def _with_motion(sample: Sample, greys: list[np.ndarray]) -> Sample:
    """The sample with the flow from its frame to the next, and with a third frame the change of the median flow.

    A frame that is shown twice stands still: of two flows the larger counts, and its jerk is not shaking.
    """
    short = min(greys[0].shape)
    flow = _flow(greys[-2], greys[-1])
    motion = float(np.linalg.norm(flow, axis=-1).mean()) / short
    median = np.median(flow.reshape(-1, 2), axis=0) / short
    if len(greys) == 2:
        return replace(sample, motion=motion, shake=float("nan"))
    before = _flow(greys[0], greys[1])
    repeated = min(np.abs(before).max(), np.abs(flow).max()) < 0.02
    jerk = median - np.median(before.reshape(-1, 2), axis=0) / short
    shake = 0.0 if repeated else float(np.linalg.norm(jerk))
    return replace(sample, motion=max(motion, sample.motion), shake=shake)


def _flow(before: np.ndarray, after: np.ndarray) -> Float32[np.ndarray, "y x 2"]:
    """[y, x, 2] in pixels of the proxy; zero where pictures are too small for the method."""
    if min(before.shape) < 32:
        return np.zeros((*before.shape, 2), np.float32)
    if np.array_equal(before, after):
        return np.zeros((*before.shape, 2), np.float32)
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(before, after, None)
