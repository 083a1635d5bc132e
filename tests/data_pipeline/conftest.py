"""Small data sets that the stream's tests share: real shards of random latents, and of tiny real video files."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from data_pipeline.records import Caption, ClipRecord, LatentRecord
from data_pipeline.shards import Index, ShardWriter
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.video_io import encode_video

CHANNELS = 3
WORDS = ["a", "red", "blue", "ball", "cube", "moves", "left", "right", "up", "over", "the", "table", "slowly"]


def make_index(
    frames: Sequence[int], height: int | Sequence[int], width: int | Sequence[int], caption_tokens: Sequence[int] = ()
) -> Index:
    """A training split with one caption a clip (of one token where `caption_tokens` is empty)."""
    count = len(frames)
    zeros = np.zeros(count, np.int32)
    return Index(
        split=np.zeros(count, np.uint8), shard=zeros, position=np.arange(count, dtype=np.int32),
        frames=np.asarray(frames, np.int32), height=np.asarray(height, np.int32) + zeros,
        width=np.asarray(width, np.int32) + zeros, fps=np.full(count, 24, np.float32),
        caption_offsets=np.arange(count + 1, dtype=np.int64),
        caption_tokens=np.asarray(caption_tokens if len(caption_tokens) else zeros + 1, np.int32),
    )  # fmt: skip


def write_latents(
    directory: Path,
    num_clips: int,
    num_heldout: int = 0,
    seed: int = 0,
    foreign: int = -1,
    fingerprint: str = "ae",
    source: str = "human",
) -> Path:
    """A finished latent data set of mixed shapes, rates and captions; record `foreign` is another autoencoder's."""
    rng = np.random.default_rng(seed)
    count = num_clips + num_heldout
    texts = [[" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(rng.integers(0, 3))] for _ in range(count)]
    tokenizer = Tokenizer.train([text for group in texts for text in group], 400)
    metadata = {
        "autoencoder_fingerprint": fingerprint, "data_fingerprint": "data", "channels": CHANNELS,
        "latent_mean": [2.0, 1.0, 0.0], "latent_std": [3.0, 2.0, 1.0],
    }  # fmt: skip
    writer = ShardWriter(directory, "latent", records_per_shard=16, tokenizer=tokenizer, metadata=metadata)
    for number, group in enumerate(texts):
        shape = (int(rng.integers(1, 8)), int(rng.choice([4, 5, 6])), int(rng.choice([4, 6, 7])), CHANNELS)
        values = np.random.default_rng(number).normal(2.0, 3.0, shape).astype(ml_dtypes.bfloat16)
        writer.write(LatentRecord(
            clip_id=f"clip{number}", source_id=f"{number}.mp4", group_id=f"g{number}",
            split="train" if number < num_clips else "heldout", latents=values.tobytes(), shape=shape,
            fps=(8.0, 12.0, 24.0)[number % 3], start_s=0.0, temporal_compression=4, spatial_compression=8,
            captions=tuple(Caption(text, source, "en", tokenizer.num_tokens(text)) for text in group), scores={},
            autoencoder_fingerprint="other" if number == foreign else fingerprint, data_fingerprint="data",
        ))  # fmt: skip
    writer.finish()
    return directory


def write_clips(
    directory: Path,
    shapes: Sequence[tuple[int, int, int]],
    damaged: Sequence[int] = (),
    captions: Sequence[Sequence[tuple[str, str]]] = (),
) -> Path:
    """A finished clip data set. Pixel (row, column) of frame f of clip n is (8 n, 4 row, 4 column) + f, nearly:
    png for one frame, else mp4. The bytes of `damaged` clips are noise. `captions` are (text, source) of each clip."""
    captions = captions or [[("a ball", "human")]] * len(shapes)
    tokenizer = Tokenizer.train([text for group in captions for text, _ in group])
    writer = ShardWriter(directory, "clip", records_per_shard=8, tokenizer=tokenizer)
    for number, (frames, height, width) in enumerate(shapes):
        video = np.zeros((frames, height, width, 3), np.uint8)
        video[..., 0] = 8 * number
        video[..., 1] += (4 * np.arange(height, dtype=np.uint8))[:, None]
        video[..., 2] += 4 * np.arange(width, dtype=np.uint8)
        video += np.arange(frames, dtype=np.uint8)[:, None, None, None]
        ending = "png" if frames == 1 else "mp4"
        data = b"noise" * 99 if number in damaged else encode_video(video, 8.0, ending, crf=1)
        writer.write(ClipRecord(
            clip_id=f"clip{number}", source_id=f"{number}.{ending}", group_id=f"g{number}", split="train", video=data,
            media_type=f"video/{ending}", start_s=0.0, end_s=frames / 8.0, fps=8.0, num_frames=frames, height=height,
            width=width, crop=(0, 0, height, width), colour={}, license="CC0-1.0",
            checksum=hashlib.sha256(data).hexdigest(),
            captions=tuple(Caption(text, kind, "en", tokenizer.num_tokens(text)) for text, kind in captions[number]),
        ))  # fmt: skip
    writer.finish()
    return directory


@pytest.fixture(scope="session")
def index_of() -> Callable[..., Index]:
    return make_index


@pytest.fixture(scope="session")
def latents_in() -> Callable[..., Path]:
    return write_latents


@pytest.fixture(scope="session")
def clips_in() -> Callable[..., Path]:
    return write_clips


@pytest.fixture(scope="session")
def latent_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 10 held-out latents."""
    return write_latents(tmp_path_factory.mktemp("latents") / "data", 60, 10)
